"""The pretrained model is always in the comparison, and a model that lost to it says so."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trimtab.errors import ConfigError
from trimtab.models import Chat, Role
from trimtab.pipeline.config import RunConfig, load_recipe
from trimtab.pipeline.evaluation import _add_proxy, _gain, compare, likelihood_per_token
from trimtab.pipeline.learning import load_rewards
from trimtab.pipeline.run import run_recipe
from trimtab.records import Completion, Prompt, Rollout, read_records
from trimtab.rollout import FunctionReward, NamedRewards
from trimtab.testing import sentences, tiny_backbone, tokenizer, toy_recipe

from .test_run import Listening, go

DPO = {
    "method": "dpo",
    "adapter": {"kind": "lora", "rank": 4, "alpha": 8, "top_layers": 2},
    "optimizer": {"lr": 2e-3, "schedule": "constant"},
}
FULL = {"adapter": {"kind": "full"}, "optimizer": {"lr": 3e-3}, "epochs": 1, "batch": 8}


def evaluation(recipe: Path) -> dict:
    return json.loads((recipe.parent / "runs/toy/stages/evaluate/evaluation.json").read_text())


def by_hand(backbone, rollout: Rollout) -> float:
    """Sum of log-probabilities of an answer's tokens, by one plain forward pass."""
    tokens = torch.tensor([rollout.prompt_tokens + rollout.tokens])
    with torch.no_grad():
        logprobs = torch.log_softmax(backbone.model(tokens).logits[0, :-1].float(), dim=-1)
    start = len(rollout.prompt_tokens) - 1
    return sum(float(logprobs[start + i, token]) for i, token in enumerate(rollout.tokens))


def rollout(backbone, question: str, answer: str) -> Rollout:
    prompt = Prompt.from_text(question)
    tokens = backbone.chat.tokenizer(answer)["input_ids"]
    return Rollout(
        id=f"{question} {answer}", prompt=prompt, prompt_tokens=backbone.chat.prompt(prompt.messages), tokens=tokens,
        logprobs=[-1.0] * len(tokens), text=answer, finish_reason="stop", weight_version=0,
    )  # fmt: skip


def test_likelihood_is_that_of_a_plain_forward_pass():
    backbone = tiny_backbone()
    questions, texts = sentences(3, words=4), sentences(6, words=5, start=70)
    answers = {
        "base": [rollout(backbone, q, a) for q, a in zip(questions, texts[:3], strict=True)],
        "policy": [rollout(backbone, q, a) for q, a in zip(questions, texts[3:], strict=True)],
    }
    measured = likelihood_per_token(Role(backbone), answers)
    for name, rollouts in answers.items():
        expected = sum(by_hand(backbone, r) for r in rollouts) / sum(len(r.tokens) for r in rollouts)
        assert measured[name] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_likelihood_is_under_the_model_without_sft(tmp_path: Path, kind: str):
    sections = {"sft": FULL} if kind == "full" else {}
    recipe = toy_recipe(tmp_path, align=None, reward=None, sample=None, label=None, **sections)
    ui = go(recipe, "evaluate.sampler.temperature=1.0")
    result = evaluation(recipe)
    folder = tmp_path / "runs/toy/stages/evaluate"
    base = read_records(folder / "answers-base.jsonl", Rollout)
    drawn = sum(sum(r.logprobs) for r in base) / sum(len(r.tokens) for r in base)
    assert result["likelihood"]["base"] == pytest.approx(drawn, abs=1e-3)  # its own, as it drew them
    assert result["likelihood"]["sft"] < result["likelihood"]["base"]
    assert [(row["model"], row["against"]) for row in result["win_rates"]] == [("sft", "base")]
    assert not any("ALARM" in line for line in ui.lines) or any("limit" in line for line in ui.lines)


def test_without_sft_the_pretrained_model_is_the_start(tmp_path: Path):
    recipe = toy_recipe(tmp_path, sft=None)
    go(recipe)
    result = evaluation(recipe)
    assert result["models"] == ["base", "policy"]
    assert {(row["model"], row["against"]) for row in result["win_rates"]} == {("policy", "base")}
    assert all(math.isfinite(value) for value in result["likelihood"].values())
    page = (tmp_path / "runs/toy/report.html").read_text()
    assert "the pretrained model" in page


def test_a_model_that_was_not_pretrained_is_compared_with_its_own_start(tmp_path: Path):
    recipe = toy_recipe(tmp_path)
    go(recipe, "evaluate.pretrained=false")
    result = evaluation(recipe)
    assert result["models"] == ["sft", "policy"] and result["likelihood"] is None
    assert {(row["model"], row["against"]) for row in result["win_rates"]} == {("policy", "sft")}
    page = (tmp_path / "runs/toy/report.html").read_text()
    assert "was not pretrained (evaluate.pretrained is false), so nothing is compared with it" in page
    with pytest.raises(ConfigError, match=r"evaluate\.pretrained is false and there is no sft and no align"):
        load_recipe(toy_recipe(tmp_path, sft=None, align=None, reward=None), ["evaluate.pretrained=false"])


def test_a_model_that_lost_says_so_at_the_end_of_the_stage_and_on_the_page(tmp_path: Path):
    """A gold utility that dislikes what SFT teaches: to end one's turn."""
    recipe = toy_recipe(tmp_path, align=None, reward=None, sample=None, label=None, gold=f"{__name__}.likes_length")
    config = load_recipe(recipe, ["sft.epochs=8", "evaluate.sampler.temperature=0.3"])
    ui = Listening()
    run = run_recipe(config, recipe, runs=tmp_path / "runs", ui=ui)
    alarm = next(line for line in ui.lines if "ALARM: SFT lost to the pretrained model" in line)
    assert "judged by the gold utility (simulated) (limit: an interval that reaches 50 %)" in alarm
    page = (run.path / "report.html").read_text()
    assert "SFT lost to the pretrained model" in page and "lost to the pretrained model’s" in page


def likes_length(prompt: Prompt, completion: Completion) -> float:
    """A random model goes on to the limit."""
    return float(len(completion.text))


def test_the_gain_is_made_of_what_the_reward_pays_for():
    """A reward that counts exclamation marks, asked through the tokens of the edited answers."""
    chat = Chat(tokenizer(), context=256)
    context: Any = SimpleNamespace(seed=lambda purpose: 0, start="sft", config=SimpleNamespace(align=None))

    def answered(texts: list[str]) -> list[Rollout]:
        rollouts = []
        for number, text in enumerate(texts):
            prompt = Prompt.from_text(f"Question {number}")
            rollouts.append(
                Rollout(
                    id=str(number),
                    prompt=prompt,
                    prompt_tokens=chat.prompt(prompt.messages),
                    tokens=chat.answer_tokens(prompt.messages, text, "stop"),
                    logprobs=[],
                    text=text,
                    finish_reason="stop",
                    weight_version=0,
                    rewards={"proxy": float(text.count("!"))},
                )
            )
        return rollouts

    marks = {"marks": lambda rs: [float(chat.decode(r.tokens).count("!")) for r in rs]}
    rewards = NamedRewards({"marks": FunctionReward(path="a.b")}, marks)
    before, after = answered(["red.", "a bird!", "blue."]), answered(["red!!", "a bird! a cat!", "- blue."])
    gain = _gain(context, chat, rewards, {"sft": before, "policy": after})
    assert gain.gain.value == pytest.approx(4 / 3 - 1 / 3)
    marks, lists = gain.parts
    assert marks.feature == "exclamation marks" and marks.part.value == pytest.approx(gain.gain.value)
    assert (marks.before, marks.after, marks.worth.value) == pytest.approx((1 / 3, 2 / 3, 2.0))
    assert lists.feature == "lists and headings" and lists.part.value == 0.0


def helpful(rollouts) -> list[float]:
    return [1.0 for _ in rollouts]


def harm(rollouts) -> list[float]:
    return [float(r.text.count("bad")) for r in rollouts]


def test_a_cost_with_a_limit_is_no_gain_and_is_shown_apart():
    """Two equally helpful models: the harmful one does not win, and both costs are in the result."""
    path = "tests.pipeline.test_evaluation"
    run = RunConfig.model_validate(
        {
            "name": "toy",
            "rewards": {
                "helpful": {"kind": "function", "path": f"{path}.helpful", "weight": 2.0},
                "harm": {"kind": "function", "path": f"{path}.harm"},
            },
            "align": {"method": "rloo", "constraint": {"reward": "harm", "limit": 0.1}},
        }
    )
    backbone = tiny_backbone()
    context: Any = SimpleNamespace(config=run)
    rewards, _ = load_rewards(context, backbone)
    assert rewards.weights == {"helpful": 2.0, "harm": 0.0}
    answers = _add_proxy(
        context,
        rewards,
        {
            "sft": [rollout(backbone, "q1", "good"), rollout(backbone, "q2", "good")],
            "policy": [rollout(backbone, "q1", "bad bad bad"), rollout(backbone, "q2", "good")],
        },
    )
    assert [r.rewards["proxy"] for r in answers["policy"]] == [2.0, 2.0]
    result = compare(answers, None, has_gold=False, seed=0)
    assert result.win_rates[0].rate == 0.5
    assert result.costs == {"sft": 0.0, "policy": 1.5}
