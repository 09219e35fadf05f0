"""Judgements in words; answers are named by their letters on the reader's screen."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from trimtab.records.annotation import OVERALL, Answer, Check, Submission, Task

LETTERS = "ABCDEFGHI"
"""Names of the answers, by position on the screen."""
Translate = Callable[..., str]


def in_words(task: Task, submission: Submission, order: Sequence[int], t: Translate) -> str:
    """A submission in words: ``A much better``, ``B > A = C``, ``Flagged: broken``.

    Args:
        task: the task of the submission.
        submission: the submission.
        order: ``order[p]`` is the index of the answer at position p of the reader's screen.
        t: translates a key of the catalogue.
    """
    if submission.verdict != "judged":
        verdict = t(f"verdict.{submission.verdict}")
        return f"{verdict}: {submission.reason}" if submission.reason else verdict
    if task.kind == "thumbs":
        return t("task.good" if submission.good else "task.bad")
    if task.kind == "steps":
        return _step(submission.first_wrong, t)
    words = []
    for answer in submission.answers:
        verdict_words = _answer(answer, submission.shown_order, order, t)
        words.append(verdict_words if answer.criterion == OVERALL else f"{answer.criterion}: {verdict_words}")
    return "; ".join(words)


_LEFT_OUT = {
    "adjudication": "left.adjudication",
    "annotator had ranked the item before": "left.again",
    "answers that name no model": "left.no_model",
    "both answers by the same model": "left.same_model",
    "check item": "left.check",
    "item retired": "left.retired",
    "settled by an adjudicator": "left.settled",
    "unknown item id": "left.unknown",
    "wrong number of answers": "left.number",
}


def left_out_words(reasons: Mapping[str, int], t: Translate) -> str:
    """Counts of judgements that a statistic leaves out, by reason, in the reader's language."""
    words = []
    for reason, count in reasons.items():
        if reason in _LEFT_OUT:
            text = t(_LEFT_OUT[reason])
        elif reason.startswith("not ranked: "):
            text = t("verdict." + reason.removeprefix("not ranked: "))
        elif reason.startswith("other kind of task: "):
            text = t("left.kind." + reason.removeprefix("other kind of task: "))
        else:
            text = t("left.criterion")
        words.append(f"{text} {count}")
    return ", ".join(words)


def expected(task: Task, check: Check, order: Sequence[int], t: Translate) -> str:
    """The expected answer of a check item, in words."""
    if task.kind == "thumbs":
        return t("task.good" if check.good else "task.bad")
    if task.kind == "steps":
        return _step(check.first_wrong, t)
    return ordering(check.ranks or (), order)


def ordering(ranks: Sequence[int], order: Sequence[int]) -> str:
    """Ranks of the answers in canonical order as ``B > A = C``."""
    named = sorted((ranks[answer], LETTERS[p]) for p, answer in enumerate(order))
    text = named[0][1]
    for (previous, _), (rank, letter) in pairwise(named):
        text += f" {'=' if rank == previous else '>'} {letter}"
    return text


def _step(first_wrong: int | None, t: Translate) -> str:
    return t("task.no_mistake") if first_wrong is None else t("words.step", number=first_wrong + 1)


def _answer(answer: Answer, shown: Sequence[int], order: Sequence[int], t: Translate) -> str:
    values = answer.ranks if answer.ranks is not None else answer.scores or ()
    by_answer = dict(zip(shown, values, strict=True))
    if answer.scores is not None:
        return ", ".join(f"{LETTERS[p]} {by_answer[i]}" for p, i in enumerate(order))
    if len(order) == 2:
        first, second = (by_answer[i] for i in order)
        if first == second:
            return t("pair.tie")
        return t(_level(answer.strength), answer=LETTERS[int(second < first)])
    return ordering([by_answer[i] for i in range(len(order))], order)


def _level(strength: float | None) -> str:
    """Catalogue key for a strength; the strongest level is 1, whatever the number of levels."""
    if strength is None:
        return "pair.better"
    levels = ((0.26, "pair.barely"), (0.51, "pair.slightly"), (0.99, "pair.better"))
    return next((key for limit, key in levels if strength < limit), "pair.much")
