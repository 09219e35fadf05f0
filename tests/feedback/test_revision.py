"""Critique and revision with a made-up model: what is kept, kept out, counted, logged, resumed."""

import pytest

from tests.constitution.test_principles import made, principle
from trimtab.feedback import Reply, RevisionConfig, by_principle, judge_biases, revise
from trimtab.records import Prompt
from trimtab.testing.endpoint import material

RULES = made(principle("kind"), principle("brief"))
PROMPTS = [Prompt.from_text(f"question {n}") for n in range(6)]


class Model:
    """Answers "draft 0", then rewrites to "draft 1", … ; a judge prefers the later draft, unless told otherwise."""

    def __init__(self, *, worse=(), violates=True, silent=(), stop_after: int | None = None) -> None:
        self.worse, self.violates, self.silent, self.left = worse, violates, silent, stop_after
        self.written: list[str] = []
        self.asked: list[str] = []

    def write(self, prompts, keep) -> None:
        for prompt in prompts:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left = None if self.left is None else self.left - 1
            self.written.append(prompt.id)
            last = prompt.messages[-1].content
            number = sum(m.role == "assistant" and m.content.startswith("draft") for m in prompt.messages)
            if last.startswith("question"):
                text = f"draft 0 to {last}"
            elif "criticise" in last or "Say where" in last:
                text = f"a critique of {prompt.messages[-2].content}"
            else:
                before = [m.content for m in prompt.messages if m.content.startswith("draft")][-1]
                text = f"draft {int(before.split()[1]) + 1} to {before.split(' to ')[1]}"
                text = "" if before.split(" to ")[1] in self.silent else text
            assert number <= 1
            keep({prompt.id: text})

    def ask(self, questions, keep) -> None:
        for question in questions:
            self.asked.append(question.key)
            texts = material(question.messages[-1].content)
            if question.options == ("Yes", "No"):
                keep({question.key: Reply(probabilities=(0.9, 0.1) if self.violates else (0.2, 0.8))})
                continue
            a, b = (int(t.split()[1]) for t in texts[-2:])
            sign = -1 if texts[-1].split(" to ")[1] in self.worse else 1
            better = (a > b) == (sign > 0)
            keep({question.key: Reply(probabilities=(0.8, 0.2) if better else (0.2, 0.8))})


def run(model: Model, config: RevisionConfig | None = None, journal=None, prompts=PROMPTS):
    return revise(
        prompts, RULES, model.write, model.ask, config or RevisionConfig(), identity="m",
        journal={} if journal is None else journal,
    )  # fmt: skip


def test_rounds_build_on_each_other_and_everything_is_logged():
    model = Model()
    result = run(model)
    assert [d.messages[-1].content for d in result.demonstrations] == [f"draft 2 to question {n}" for n in range(6)]
    assert result.counts == {"kept": 12, "left_out": 0} and len(result.revisions) == 12
    first, second = (next(r for r in result.revisions if r.prompt == PROMPTS[0].id and r.round == k) for k in (0, 1))
    assert first.answer == "draft 0 to question 0" and first.revision == second.answer == "draft 1 to question 0"
    assert first.critique == "a critique of draft 0 to question 0" and first.probability == pytest.approx(0.8)
    assert {r.principle for r in result.revisions} == {"kind", "brief"}
    outcome = judge_biases(result.revisions)  # a judge without a preference for a place
    assert (outcome.position_bias.value, outcome.flip_rate.value, outcome.position_bias.n) == (0.5, 0.0, 24)
    assert not outcome.longer_wins.n  # "draft 1" is as long as "draft 0"
    assert result.demonstrations[0].metadata == {"constitution": RULES.version, "revised": True}
    assert result.revisions == run(Model()).revisions  # seeded


def test_what_got_worse_is_kept_out_and_counted():
    result = run(Model(worse={"question 1", "question 4"}))
    assert result.counts == {"kept": 8, "worse": 4, "left_out": 2}
    assert len(result.demonstrations) == 4
    assert all(r.answer.startswith("draft 0") for r in result.revisions if r.outcome == "worse")


def test_a_judge_that_does_not_decide_keeps_nothing():
    for there, back in ((0.9, 0.8), (0.5, 0.5)):  # contradicts itself (.9 and .2); sees no difference
        model = Model()
        model.ask = lambda questions, keep, p=(there, back): keep(  # type: ignore
            {q.key: Reply(probabilities=(p[n % 2], 1 - p[n % 2])) for n, q in enumerate(questions)}
        )
        result = run(model)
        assert result.counts == {"undecided": 12, "left_out": 6} and result.demonstrations == ()


def test_without_violation_there_is_no_revision():
    config = RevisionConfig(violation_first=True)
    model = Model(violates=False)
    result = run(model, config)
    assert result.counts == {"no violation": 12, "left_out": 0} and len(model.written) == 6
    assert all(d.messages[-1].content.startswith("draft 0") for d in result.demonstrations)
    assert not any(d.metadata["revised"] for d in result.demonstrations)
    result = run(Model(violates=True), config)
    assert result.counts == {"kept": 12, "left_out": 0} and result.revisions[0].violation == 0.9
    table = by_principle(result.revisions)
    assert sum(row.fired for row in table.values()) == sum(row.rounds for row in table.values()) == 12


def test_empty_revisions_and_judges_without_an_answer():
    result = run(Model(silent={"question 0"}))
    assert result.counts == {"kept": 10, "empty": 2, "left_out": 1}
    model = Model()
    model.ask = lambda questions, keep: keep({q.key: Reply(failure="refused") for q in questions})  # type: ignore
    result = run(model)
    assert result.counts == {"no verdict": 12, "left_out": 6} and result.demonstrations == ()


def test_without_critique():
    model = Model()
    result = run(model, RevisionConfig(critique=False, rounds=1))
    assert len(model.written) == 12 and result.counts["kept"] == 6
    assert all(r.critique == "" for r in result.revisions)


def test_a_killed_run_goes_on_and_writes_nothing_twice():
    whole = run(Model())
    journal: dict = {}
    written: list[str] = []
    for _ in range(20):
        model = Model(stop_after=3)
        try:
            result = run(model, journal=journal)
        except KeyboardInterrupt:
            written += model.written
            continue
        written += model.written
        break
    assert result.revisions == whole.revisions and result.demonstrations == whole.demonstrations
    assert len(written) == len(set(written)) == 6 + 2 * 12


def test_a_prompt_that_stands_twice_is_answered_once():
    assert len(run(Model(), prompts=[PROMPTS[0], PROMPTS[0]]).demonstrations) == 1
