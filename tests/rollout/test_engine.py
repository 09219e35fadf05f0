"""The step engine, against the trainers' sampler, Hugging Face's logits, and hand calculation."""

import random

import pytest
import torch

from trimtab import fast_cpu
from trimtab.errors import ConfigError, ModelError
from trimtab.models import AdapterConfig, Role
from trimtab.models.layouts import Layouts
from trimtab.records import Prompt
from trimtab.rollout import LocalSampler, SamplerConfig
from trimtab.rollout.answer_text import AnswerText
from trimtab.rollout.drawing import answer_stream, invert
from trimtab.rollout.engine import PREFILL, Answer, AnswerSettings, Drawn, StepEngine, draw
from trimtab.testing import prompts, sentences, tiny_backbone

from ..kit import stir


def answer(prompt: Prompt, index: int = 0, *, seed: int = 0, **settings) -> Answer:
    return Answer(
        settings=AnswerSettings(**({"max_new_tokens": 12} | settings)), stream=answer_stream(seed, prompt.id, index)
    )


def finish(engine: StepEngine) -> list[Drawn]:
    drawn: list[Drawn] = []
    while engine.running or engine.waiting:
        drawn += engine.step()
    return drawn


def text_of(drawn: list[Drawn], one: Answer) -> str:
    return "".join(d.text for d in drawn if d.answer is one)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("fast", [False, True])
def test_draws_what_the_sampler_draws(architecture, fast):
    backbone = tiny_backbone(architecture)
    stir(Role.trainable(backbone, "policy", AdapterConfig(rank=4, alpha=8), seed=1), scale=0.05)
    questions = prompts(5)
    config = SamplerConfig(max_new_tokens=12, temperature=0.8, top_p=0.9, stop=("e ",))
    expected = LocalSampler(backbone, config).generate(questions, adapter="policy", seed=7, group=2)
    if fast:
        fast_cpu.install()
    try:
        engine = StepEngine(backbone, adapter="policy", slots=3, length=64)
        answers = []
        for prompt in questions:
            pair = [answer(prompt, i, seed=7, temperature=0.8, top_p=0.9, stop=("e ",)) for i in range(2)]
            engine.add(backbone.chat.prompt(prompt.messages), pair)
            answers += pair
        drawn = finish(engine)
    finally:
        fast_cpu.uninstall()
    assert [a.tokens for a in answers] == [r.tokens for r in expected]
    assert [text_of(drawn, a).strip() for a in answers] == [r.text for r in expected]
    reasons = {id(d.answer): d.finish_reason for d in drawn if d.finish_reason}
    assert [reasons[id(a)] for a in answers] == [r.finish_reason for r in expected]
    weights = [p.clone() for p in backbone.model.parameters()]
    engine.close()
    assert any(not torch.equal(a, b) for a, b in zip(weights, backbone.model.parameters(), strict=True))


def test_long_prompts_are_read_in_pieces_between_steps():
    backbone = tiny_backbone(context=600)
    engine = StepEngine(backbone, adapter=None, slots=4, length=600)
    short, long = prompts(1)[0], Prompt.from_text(" ".join(sentences(60)))
    tokens = backbone.chat.prompt(long.messages)[:400]
    first, second = answer(short, max_new_tokens=30), answer(long, temperature=0.0, max_new_tokens=5)
    engine.add(backbone.chat.prompt(short.messages), [first])
    engine.step()
    engine.add(tokens, [second])
    for pieces in range(1, 4):
        before = len(first.tokens)
        engine.step()
        assert len(first.tokens) == before + 1, "the running answer goes on while the prompt is read"
        assert not second.tokens and engine.cached == first.length + PREFILL * pieces
    engine.step()
    assert len(second.tokens) == 1
    finish(engine)
    rows = torch.tensor([tokens])
    expected = backbone.model.generate(
        rows, attention_mask=torch.ones_like(rows), do_sample=False, max_new_tokens=5
    )[0, 400:]  # fmt: skip
    assert second.tokens == expected.tolist()


def test_an_answer_is_the_same_alone_and_in_company():
    backbone, questions = tiny_backbone(), prompts(20)

    def run(slots: int) -> list[list[int]]:
        engine = StepEngine(backbone, adapter=None, slots=slots, length=80)
        answers = [answer(prompt, seed=i, max_new_tokens=8) for i, prompt in enumerate(questions)]
        for prompt, one in zip(questions, answers, strict=True):
            engine.add(backbone.chat.prompt(prompt.messages), [one])
        finish(engine)
        return [a.tokens for a in answers]

    alone = run(1)
    assert run(20) == alone and run(7) == alone


def test_cancelled_answers_free_their_slot_and_change_nobody_else():
    backbone, questions = tiny_backbone(), prompts(6)
    engine = StepEngine(backbone, adapter=None, slots=3, length=80)
    answers = [answer(p, temperature=0.0, max_new_tokens=20) for p in questions]
    for prompt, one in zip(questions, answers, strict=True):
        engine.add(backbone.chat.prompt(prompt.messages), [one])
    engine.step()
    assert (engine.running, engine.waiting) == (3, 3)
    running = [a for a in answers if a.tokens]
    engine.cancel(running[0])  # running
    engine.cancel(answers[-1])  # waiting
    assert engine.running == 2 and engine.waiting == 2
    count = len(running[0].tokens)
    finish(engine)
    assert len(running[0].tokens) == count and not answers[-1].tokens
    for prompt, one in list(zip(questions, answers, strict=True))[:-1]:
        if one is running[0]:
            continue
        row = torch.tensor([backbone.chat.prompt(prompt.messages)])
        theirs = backbone.model.generate(
            row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=20
        )[0, row.shape[1] :]  # fmt: skip
        assert one.tokens == theirs.tolist()


def test_settings_of_one_answer_do_not_touch_its_neighbours():
    torch.manual_seed(0)
    logits = torch.randn(3, 320)
    answers = [
        Answer(settings=AnswerSettings(temperature=0.0), stream=random.Random(1)),
        Answer(settings=AnswerSettings(temperature=0.5, top_p=1e-6), stream=random.Random(2)),
        Answer(
            settings=AnswerSettings(temperature=0.0, presence_penalty=1.0, frequency_penalty=0.5),
            stream=random.Random(3),
        ),
    ]
    best = logits[2].topk(2)
    gap = float(best.values[0] - best.values[1])
    times = int((gap - 1.0) / 0.5) + 1 if gap > 1.0 else 1  # enough repetitions that the second is more likely
    answers[2].tokens = [int(best.indices[0])] * times
    drawn = draw(logits, answers)
    assert drawn[0] == logits[0].argmax() and drawn[1] == logits[1].argmax()
    assert 1.0 + 0.5 * times > gap and drawn[2] == best.indices[1]
    assert answers[0].stream.random() != random.Random(1).random(), "every row uses one number, also a greedy one"


def test_logprobs_are_hugging_faces():
    backbone, prompt = tiny_backbone(), prompts(1)[0]
    engine = StepEngine(backbone, adapter=None, slots=2, length=80)
    one = answer(prompt, temperature=0.3, logprobs=3, max_new_tokens=6)
    tokens = backbone.chat.prompt(prompt.messages)
    engine.add(tokens, [one])
    given = [entry for d in finish(engine) for entry in d.logprobs]
    with torch.no_grad():
        logits = backbone.model(torch.tensor([tokens + one.tokens])).logits[0, len(tokens) - 1 : -1]
    expected = torch.log_softmax(logits, dim=-1)
    shown = [t for t in one.tokens if t not in backbone.chat.end_tokens]
    assert [entry.token for entry in given] == shown
    for place, entry in enumerate(given):
        assert entry.logprob == pytest.approx(float(expected[place, entry.token]), abs=1e-4)
        assert [t for t, _ in entry.top] == expected[place].topk(3).indices.tolist()


@pytest.mark.parametrize("fast", [False, True])
def test_recorded_states_are_those_of_the_layer(fast):
    backbone, prompt = tiny_backbone(), prompts(1)[0]
    if fast:
        fast_cpu.install()
    try:
        engine = StepEngine(backbone, adapter=None, slots=2, length=80, recorded_layer=2)
        one = answer(prompt, max_new_tokens=5)
        tokens = backbone.chat.prompt(prompt.messages)
        engine.add(tokens, [one])
        drawn = finish(engine)
    finally:
        fast_cpu.uninstall()
    with torch.no_grad():
        states = backbone.model(torch.tensor([tokens + one.tokens]), output_hidden_states=True).hidden_states[2][0]
    assert one.prompt_states is not None
    torch.testing.assert_close(one.prompt_states, states[: len(tokens)], rtol=1e-4, atol=1e-4)
    from_engine = torch.stack([d.state for d in drawn if d.state is not None])
    torch.testing.assert_close(from_engine, states[len(tokens) - 1 : -1], rtol=1e-4, atol=1e-4)


class Spelling:
    """A chat whose tokens are bytes."""

    def decode(self, tokens, *, strip=True):
        return bytes(tokens).decode("utf-8", "replace")


@pytest.mark.parametrize("stop", [(), ("\n\nUser:",), ("aab", "b!"), ("ß",)])
def test_pieces_are_whole_and_nothing_of_a_stop_string_is_shown(stop):
    whole = "aaaab! naïve 🙂🙂 ß\n\nUse it.\n\nUser: hi"
    text = AnswerText(Spelling(), stop)  # pyright: ignore
    pieces, notes, shown = [], [], ""
    for number, byte in enumerate(whole.encode()):
        piece, noted = text.push(byte, number)
        pieces.append(piece)
        notes += noted
        shown += piece
        assert "\ufffd" not in piece and not any(s in shown for s in stop)
        if text.stopped:
            break
    rest, noted = text.end()
    shown, notes = shown + rest, notes + noted
    end = min((whole.find(s) for s in stop if s in whole), default=len(whole))
    assert shown == whole[:end]
    assert text.stopped == (end < len(whole))
    assert notes == list(range(len(shown.encode())))
    if not stop:
        assert sum(map(bool, pieces)) == len(whole), "each character is shown as soon as it is whole"


def test_half_a_character_at_the_end_is_left_out():
    text = AnswerText(Spelling(), ("xyz",))  # pyright: ignore
    assert [text.push(b)[0] for b in b"ax" + "é".encode()[:1]] == ["a", "", ""]
    assert text.end()[0] == "x"


def test_a_stop_string_in_front_of_half_a_character_ends_the_answer():
    class Pieces:
        def decode(self, tokens, *, strip=True):
            return b"".join({0: b"a \xf0", 1: b"b STOP \xf0"}[i] for i in tokens).decode("utf-8", "replace")

    text = AnswerText(Pieces(), ("STOP",))  # pyright: ignore
    assert text.push(1) == ("", []) and text.end()[0] == "b "
    assert text.stopped


@pytest.mark.parametrize("settings", [{"temperature": t} for t in (1e-300, 1e-39, 9e-5)] + [{"top_p": 1e-300}])
def test_settings_that_vanish_in_float32_take_the_most_likely_token(settings):
    logits = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)) * 5
    pair = [answer(prompts(1)[0], **settings), answer(prompts(1)[0])]
    drawn = draw(logits, pair)
    assert int(drawn[0]) == int(logits[0].argmax())
    assert int(drawn[1]) == int(draw(logits[1:], [answer(prompts(1)[0])])[0]), "the neighbour is not touched"


def test_a_draw_is_always_in_the_vocabulary():
    assert int(invert(torch.full((1, 300), torch.nan), torch.tensor([0.5], dtype=torch.float64))[0]) < 300


def test_what_does_not_fit_is_refused():
    backbone = tiny_backbone()
    engine = StepEngine(backbone, adapter=None, slots=2, length=20)
    with pytest.raises(ConfigError, match="3 answers"):
        engine.add([1], [answer(prompts(1)[0], i, max_new_tokens=1) for i in range(3)])
    with pytest.raises(ConfigError, match="20"):
        engine.add([1] * 15, [answer(prompts(1)[0], max_new_tokens=6)])
    backbone.layouts = Layouts(slots=False, off={"slots": "its numbers differ"})
    with pytest.raises(ModelError, match="its numbers differ"):
        StepEngine(backbone, adapter=None, slots=2, length=20)
