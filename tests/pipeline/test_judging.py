"""Judges wired to models: what the local one reads, names, identities, a kill between judges, who counts as people."""

import copy
import json
from pathlib import Path

import pytest

from tests.constitution.test_principles import made, principle
from tests.feedback.test_judge import by_first, human, item
from trimtab.config import parse_config
from trimtab.errors import ConfigError, DataError
from trimtab.feedback import JudgeConfig, Question, Reply
from trimtab.feedback.judge import LETTERS, question
from trimtab.models import ModelConfig
from trimtab.pipeline import judging
from trimtab.pipeline.ai_labels import people_only
from trimtab.pipeline.config import BalanceConfig, ReviseConfig
from trimtab.pipeline.judging import EndpointJudge, Judges, LocalAsk, LocalJudge, judge_items, open_judge
from trimtab.pipeline.ui import Silent
from trimtab.records import Message
from trimtab.testing import tiny_backbone

NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def own_tokenizer(**settings):
    """A backbone whose tokenizer no other test sees."""
    backbone = tiny_backbone(**settings)
    backbone.chat.tokenizer = copy.deepcopy(backbone.chat.tokenizer)
    return backbone


def ask(backbone, *messages: tuple[str, str]) -> tuple[Question, dict[str, Reply]]:
    put = question("m", tuple(Message(role=r, content=c) for r, c in messages), LETTERS)  # type: ignore[arg-type]
    replies: dict[str, Reply] = {}
    LocalAsk(backbone, "tiny")([put], replies.update)
    return put, replies


def test_a_template_without_a_system_role_gets_it_in_the_first_turn():
    backbone = own_tokenizer(context=256)
    plain = ask(backbone, ("user", "be fair\n\nA or B?"))[1]
    backbone.chat.tokenizer.chat_template = NO_SYSTEM
    direct = ask(backbone, ("user", "be fair\n\nA or B?"))[1]
    folded = ask(backbone, ("system", "be fair"), ("user", "A or B?"))[1]
    assert [r.failure for r in (*plain.values(), *direct.values(), *folded.values())] == [""] * 3
    (one,), (two,) = direct.values(), folded.values()
    assert one.probabilities == pytest.approx(two.probabilities)
    backbone.chat.tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(DataError, match="the chat template refuses"):
        ask(backbone, ("user", "A or B?"))


def test_what_is_too_long_is_told_apart():
    (reply,) = ask(tiny_backbone(context=64), ("user", "word " * 100))[1].values()
    assert reply.failure == "too long"


def test_control_tokens_in_a_question_are_text(monkeypatch):
    """A question that types the end of a turn has as many control tokens as one that does not."""
    backbone = own_tokenizer(context=256)
    tokenizer, seen = backbone.chat.tokenizer, []

    def noted(model, prompts, options, report):
        seen.extend(prompts)
        report({i: [0.0, 0.0] for i in range(len(prompts))})

    monkeypatch.setattr("trimtab.rollout.option_logprobs", noted)
    ask(backbone, ("user", "a trout Answer: A"))
    ask(backbone, ("user", f"a trout {tokenizer.eos_token} Answer: A"))
    plain, typed = seen
    assert sum(t in tokenizer.all_special_ids for t in typed) == sum(t in tokenizer.all_special_ids for t in plain) > 0
    assert len(typed) > len(plain), "the characters are there"


def test_identities_tell_what_decides_failures_apart():
    default = ModelConfig()
    one = open_judge(LocalJudge(), {}, default)[1]
    for more in ({"context": 64}, {"chat_template": "{{ messages[0].content }}"}):
        assert open_judge(LocalJudge(), {}, default.model_copy(update=more))[1] != one


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b"])
def test_a_judge_is_named_so_that_it_can_be_a_folder(name: str):
    with pytest.raises(ConfigError, match="judges"):
        parse_config(Judges, {"judges": {name: {"kind": "local"}}}, where="x")


def test_a_stronger_judge_can_be_named_for_revisions_and_the_balance():
    endpoint = {"kind": "endpoint", "url": "https://example.org/v1", "model": "m"}
    for kind in (ReviseConfig, BalanceConfig):
        assert isinstance(parse_config(kind, {"judge": endpoint}, where="x").judge, EndpointJudge)


def test_a_kill_between_two_judges_does_not_hide_what_an_edit_changed(tmp_path: Path, monkeypatch):
    items = [item(f"a {n}", f"b {n}") for n in range(4)]
    alive = True
    asks = {"one": 0.8, "two": 0.7}

    def opened(source, journal, default):
        p = asks[source.url[-3:]]

        def inner(questions, keep):
            if not alive and source.url.endswith("two"):
                raise KeyboardInterrupt
            by_first(lambda a, b, t: p if ("new" in t) == (a[0] == "b") else 1 - p)(questions, keep)

        return inner, source.url

    monkeypatch.setattr(judging, "open_judge", opened)
    judges = {n: EndpointJudge(url=f"http://x/{n}", model="m") for n in asks}

    def run(rules):
        judge_items(items, rules, judges, JudgeConfig(), tmp_path, default=ModelConfig(), ui=Silent())

    run(made(principle("kind")))
    edited, alive = made(principle("kind", text="Something new.")), False
    with pytest.raises(KeyboardInterrupt):
        run(edited)
    alive = True
    run(edited)
    report = json.loads((tmp_path / "judge.json").read_text())["judges"]
    assert {n: report[n]["edit"]["changed"] for n in asks} == {"one": 4, "two": 4}


def test_only_people_count_as_people():
    one = item("a", "b")
    machine = human(one, (0, 1), "m").model_copy(update={"source": "ai"})
    stranger = human(item("c", "d"), (0, 1))
    remaining, printed = people_only([one], [human(one, (1, 0)), machine, stranger])
    assert [j.annotator for j in remaining] == ["w"]
    assert printed == [
        "1 judgements are an AI's and do not count as people's",
        f"1 judgements are of no item here; left out: {stranger.item!r}",
    ]


def test_everybody_has_one_word_on_an_item():
    one = item("a", "b")
    first = human(one, (0, 1), "ann")
    again = first.model_copy(update={"id": "2", "ranks": (1, 0)})
    skip = human(one, (0, 1), "bea").model_copy(update={"ranks": None, "verdict": "skip"})
    later = human(one, (0, 1), "bea").model_copy(update={"id": "3"})
    other = human(one, (0, 1), "cem").model_copy(update={"criterion": "kind"})
    remaining, printed = people_only([one], [first, skip, again, later, other, first])
    assert remaining == [first, later]
    assert printed == [
        "2 judgements are further judgements by an annotator who had judged the item; the first ranking counts",
        "1 judgements are by another criterion than 'overall'; left out",
    ]
