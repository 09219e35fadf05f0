"""The demonstration's gold utility: how a *simulated* reader likes a one-sentence summary of a short message.

The message is in the prompt, so whatever the summary says can be checked against it. The reader wants what a person
wants of a summary: what matters is in it, nothing is invented, it is not a copy, and it is one short complete sentence.

=============  ==============  ====================================================================
part           contribution    what it is
=============  ==============  ====================================================================
``facts``      0 … 4.5         share of the message's key facts that the summary mentions, the first two double
``invented``   −3 … 0          share of content words that the message does not have; names and numbers count double
``rewired``    −3 … 0          neighbours that no sentence of the message has in this order; all gaps but the first
``answered``   −3 or 0         a question of the message told as a fact
``length``     −1 … 1          1 from 10 to 18 words, 0 at 5 and at 24, −1 at none and from 31 on
``sentence``   −3 … 0          not exactly one sentence that begins with a capital and ends with a full stop, not "the."
``copied``     −1 … 0          most of the message, or a whole sentence of it, word for word
``repetition`` −2.5 … 0        repeated word pairs or content words beyond what prose has
``telegram``   −1.5 … 0        hardly any function words
``negation``   −1 or 0         a negation in the summary that the message does not have
``cut``        −1 or 0         cut at the token limit instead of ending its turn
=============  ==============  ====================================================================

The utility is their sum, not below −3. A careful summary scores between 4 and 5.5. A message that asks something may be
summarised by its question.

Key facts come from the prompt's metadata (``facts``: a list of short strings, most important first). A message without
them is read for names and numbers. The words are compared after stripping common English endings; the reader knows
English only, and does not understand it: a summary that gives the message's words a new meaning passes for true.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from trimtab.feedback.words import FUNCTION_WORDS, has_finite_verb, ramp, repetition, stem, words_of
from trimtab.records import Completion, Prompt, Rollout

LOWEST = -3.0
"""Floor of the utility: below it a person would not tell two bad answers apart."""

_NEGATIONS = frozenset("not no never without cannot nothing nobody none neither nor".split())
_NEVER_LAST = frozenset(
    """
    a an the and or but of at for from to with by as than because while if that which who whose is was are were has have
    had be been our your my their his its this these
    """.split()
)
_NEVER_FIRST = frozenset(
    """
    and or but of which who because so than
    do does did is are was were has have can could will would may might should shall what when where why how
    """.split()
)  # half sentences and questions
_ASKING = frozenset("asks ask asking asked wants want needs need whether please wonders enquires requests".split())
_JOINTS = frozenset("and but so because".split())
_BEFORE_ORDERS = frozenset("you to please somebody someone anybody anyone everyone people".split())
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")
_NUMBER_OR_NAME = re.compile(r"(?<![.!?]\s)(?<!^)\b[A-Z][\w'’-]*|\b\d[\d:.,]*\b")


def summary_utility(prompt: Prompt, completion: Completion) -> float:
    """How much the simulated reader likes this summary of the prompt's message; from −3 to 5.5."""
    return max(LOWEST, sum(summary_parts(prompt, completion).values()))


def summary_parts(prompt: Prompt, completion: Completion) -> dict[str, float]:
    """The contributions to :func:`summary_utility` by name, each in the range of the module's table."""
    message, summary = message_of(prompt), completion.text.strip()
    message_words, summary_words = words_of(message), words_of(summary)
    content = [stem(w) for w in summary_words if w not in FUNCTION_WORDS]
    source = _source(message, summary_words)
    return {
        "facts": 4.5 * _facts(key_facts(prompt, message), set(map(stem, summary_words))),
        "invented": -3.0 * _invented(message_words, summary, content),
        "rewired": -3.0 * ramp(_rewired(message, summary_words), 0, 2),
        "answered": -3.0 if _answered(source, summary, summary_words) else 0.0,
        "length": _length(len(summary_words)),
        "sentence": -_not_one_sentence(summary, asks=source.endswith("?")),
        "copied": -1.0 * _copied(message, summary_words),
        "repetition": -2.5 * repetition(summary_words, content),
        "telegram": -1.5 * ramp(_function_share(summary_words), 0.3, 0.15),
        "negation": -1.0 if _negated(summary_words) and not _negated(message_words) else 0.0,
        "cut": -1.0 if completion.finish_reason == "length" else 0.0,
    }


def copying(rollouts: Sequence[Rollout]) -> list[float]:
    """A reward by rule, to be weighed below 0: 1 for a copy, 0 for a summary in other words, between for near copies.

    A copy is most of the message, or one of its sentences, word for word. A reward model of this size overlooks the
    second kind: a sentence of the message is true, fluent and about the message.
    """
    return [_copied(message_of(r.prompt), words_of(r.text)) for r in rollouts]


def message_of(prompt: Prompt) -> str:
    """The message to summarise: what follows the first blank line of the user's turn, or all of it without one."""
    _, gap, message = prompt.text.partition("\n\n")
    return message if gap else prompt.text


def key_facts(prompt: Prompt, message: str) -> list[str]:
    """The key facts of the metadata, most important first; names and numbers of the message where there are none."""
    facts = prompt.metadata.get("facts")
    if isinstance(facts, Sequence) and not isinstance(facts, str) and facts:
        return [str(fact) for fact in cast("Sequence[object]", facts)]
    return list(dict.fromkeys(_NUMBER_OR_NAME.findall(message)))


def _facts(facts: Sequence[str], stems: set[str]) -> float:
    """Weighted share of the facts' words that are mentioned."""
    total = mentioned = 0.0
    for place, fact in enumerate(facts):
        fact_stems = {stem(w) for w in words_of(fact) if w not in FUNCTION_WORDS} or {stem(w) for w in words_of(fact)}
        weight = 2.0 if place < 2 else 1.0
        total += weight
        mentioned += weight * len(fact_stems & stems) / max(1, len(fact_stems))
    return mentioned / total if total else 0.5


def _invented(message_words: Sequence[str], summary: str, content: Sequence[str]) -> float:
    """0 where all content words come from the message, 1 where half of them do not."""
    if not content:
        return 1.0
    known = set(map(stem, message_words)) | set(message_words)
    strange = sum(w not in known for w in content)
    named = {stem(w) for token in _NUMBER_OR_NAME.findall(summary) for w in words_of(token)}
    strange += sum(w not in known for w in named)
    return ramp(strange / len(content), 0.05, 0.5)


def _rewired(message: str, summary_words: Sequence[str]) -> float:
    """Neighbouring words of the summary that no sentence of the message has in this order.

    Words that a sentence has in this order with others between them are a gap, and so is a joint ("…, and …") that the
    message does not have. The first gap is free, since a summary leaves something out; each further one counts half.
    An article as the first word is free too: "The" for "Our"; "Your" for "Our" is not.
    """
    sentences = [[stem(w) for w in words_of(sentence)] for sentence in _SENTENCE_END.split(message)]
    neighbours = {pair for sentence in sentences for pair in pairwise(sentence)}
    words = summary_words[1:] if summary_words[:1] in (["the"], ["a"], ["an"]) else summary_words
    gaps = strange = 0
    for first, second in pairwise(map(stem, words)):
        if (first, second) in neighbours or first in _JOINTS:
            continue
        if second in _JOINTS or any(first in s and second in s[s.index(first) :] for s in sentences):
            gaps += 1
        else:
            strange += 1
    return strange + 0.5 * max(0, gaps - 1)


def _source(message: str, summary_words: Sequence[str]) -> str:
    """The sentence of the message that shares the longest run of words with the summary; empty below three words."""
    sentences = [s for s in _SENTENCE_END.split(message) if s.strip()]
    runs = [_longest_run(summary_words, words_of(s)) for s in sentences]
    return sentences[runs.index(max(runs))] if max(runs, default=0) >= 3 else ""


def _answered(source: str, summary: str, summary_words: Sequence[str]) -> bool:
    """True: the summary states what its source asks ("Is it open?" – "It is open.").

    A request told as an order ("Could you feed the cat?" – "Feed the cat.") and a summary that says that somebody asks
    or needs to know are no such statements.
    """
    if not source.endswith("?") or summary.endswith("?") or _ASKING & set(summary_words):
        return False
    orders = {b for a, b in pairwise(words_of(source)) if a in _BEFORE_ORDERS}
    return summary_words[0] not in orders


def _length(count: int) -> float:
    return ramp(count, 0, 5) + ramp(count, 5, 10) - 1 if count < 10 else 1 - ramp(count, 18, 24) - ramp(count, 24, 31)


def _not_one_sentence(summary: str, *, asks: bool) -> float:
    """0 for one sentence with a capital first, a full stop last and no loose end ("… at the."), up to 3.

    A question is a sentence if it comes from one (``asks``); otherwise it costs as much as two sentences.
    """
    sentences = [s for s in _SENTENCE_END.split(summary) if s.strip()]
    question = asks and summary.endswith("?")
    broken = "\n" in summary or len(sentences) != 1 or (summary.endswith("?") and not asks)
    unfinished = not summary.endswith((".", "!", "?", '."', ".'"))
    small = not summary[:1].isupper() and not summary[:1].isdigit()
    words = words_of(summary)
    begins = words[0] not in _NEVER_FIRST or words[:2] == ["do", "not"] or question if words else False
    fragment = bool(words) and (not begins or words[-1] in _NEVER_LAST or not has_finite_verb(words))
    return min(3.0, 1.5 * broken + 1.0 * unfinished + 0.5 * small + 2.5 * fragment)


def _copied(message: str, summary_words: Sequence[str]) -> float:
    """1 for the message word for word, for four fifths of its words, or for a whole sentence of it."""
    message_words = words_of(message)
    run = _longest_run(summary_words, message_words)
    worst = ramp(run / max(1, len(message_words)), 0.4, 0.7)
    for sentence in map(words_of, _SENTENCE_END.split(message)):
        if len(sentence) >= 6:
            run = _longest_run(summary_words, sentence)
            whole = ramp(run / len(sentence), 0.8, 1.0) * ramp(run / max(1, len(summary_words)), 0.6, 0.9)
            worst = max(worst, whole)
    return worst


def _longest_run(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest run of words that both have."""
    best, row = 0, [0] * (len(b) + 1)
    for x in a:
        row = [0, *(row[j] + 1 if x == y else 0 for j, y in enumerate(b))]
        best = max(best, *row)
    return best


def _function_share(summary_words: Sequence[str]) -> float:
    return sum(w in FUNCTION_WORDS for w in summary_words) / len(summary_words) if summary_words else 0.0


def _negated(text_words: Sequence[str]) -> bool:
    return any(w in _NEGATIONS or w.endswith("n't") for w in text_words)
