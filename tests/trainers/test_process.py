"""Process rewards at toy size: labels, training finds planted wrong steps, scores, and reinforcement with them."""

import json
import math
import random

import pytest
import torch

from tests.trainers.rl_kit import STEADY
from trimtab.errors import DataError
from trimtab.evals.first_error import first_error_f1, first_wrong, modal_first
from trimtab.models import AdapterConfig, Role
from trimtab.records import Prompt
from trimtab.records.annotation import StepLabel
from trimtab.records.steps import load_steps, step_label
from trimtab.rollout import LocalSampler, ProcessReward, ProcessScorer, SamplerConfig, split_steps
from trimtab.rollout.continuing import ContinuingSampler, continuations
from trimtab.rollout.process import solution_scores
from trimtab.testing import prompts, sentences, tiny_backbone
from trimtab.trainers import PpoConfig, ProcessConfig, RlRoles, Session, encode_solutions, score_solutions, train_rl
from trimtab.trainers.process import train_process

LORA = AdapterConfig(rank=4, alpha=8)
RIGHT, WRONG = "green tea", "cold soup"


def planted(count: int, seed: int) -> list[StepLabel]:
    """Solutions of three steps; the first one of the planted kind is the first wrong one."""
    draw, labels = random.Random(seed), []
    for number, prompt in enumerate(sentences(count, words=3, start=seed * 1000)):
        wrong = draw.choice([None, 0, 1, 2])
        steps = tuple(WRONG if i == wrong else RIGHT for i in range(3))
        labels.append(StepLabel(id=str(number), prompt=Prompt.from_text(prompt), steps=steps, first_wrong=wrong))
    return labels


@pytest.fixture(scope="module")
def trained():
    backbone = tiny_backbone()
    role = Role.trainable(backbone, "process", LORA, seed=0, scalar_head=True)
    solutions, _, left_out = encode_solutions(backbone.chat, planted(48, 1), "\n")
    assert left_out == {"too_long": 0, "unrendered": {}, "separated": 0}
    rows = []
    train_process(
        role, solutions, ProcessConfig(adapter=LORA, optimizer=STEADY, epochs=12, batch=8), seed=0,
        session=Session(log=rows.append),
    )  # fmt: skip
    return role, rows


def test_planted_wrong_steps_are_found(trained):
    role, rows = trained
    assert rows[-1]["loss"] < 0.2 < rows[0]["loss"] and rows[-1]["step_accuracy"] > 0.9
    labels = planted(40, 7)
    solutions, _, _ = encode_solutions(role.backbone.chat, labels, "\n")
    predicted = [first_wrong(row) for row in score_solutions(role, solutions)]
    f1 = first_error_f1("f1", predicted, [label.first_wrong for label in labels])
    assert f1.value > 0.9 and f1.low > 0.7


def test_encoding_marks_the_last_token_of_every_step():
    chat = tiny_backbone().chat
    [label] = [label for label in planted(30, 2) if label.first_wrong == 1][:1]
    [solution], _, _ = encode_solutions(chat, [label], "\n")
    heads = [chat.decode(solution.tokens[: end + 1]) for end in solution.ends]
    assert [head.endswith(step) for head, step in zip(heads, label.steps, strict=True)] == [True] * 3
    assert solution.targets == [1.0, 0.0, None]


def test_scores_by_hand():
    rows = [[math.log(9), 0.0, math.log(4)], [math.log(3)]]  # .9, .5, .8 and .75
    for how, wanted in {"product": 0.36, "minimum": 0.5, "last": 0.8, "mean": 2.2 / 3}.items():
        assert solution_scores(rows, how) == pytest.approx([wanted, 0.75])


def test_labels_that_teach_nothing():
    backbone = tiny_backbone()
    role = Role.trainable(backbone, "process", LORA, seed=0, scalar_head=True)
    right = [label for label in planted(30, 3) if label.first_wrong is None]
    solutions, _, _ = encode_solutions(backbone.chat, right, "\n")
    with pytest.raises(DataError, match=r"all \d+ judged ones have the label 1"):
        train_process(role, solutions, ProcessConfig(adapter=LORA), seed=0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "steps": ["a", "b"], "first_wrong": 2}, "first_wrong 2: there are 2 steps"),
        ({"prompt": "q", "steps": ["a", " "], "first_wrong": None}, "step 1 of 2 is empty"),
        ({"prompt": "q", "steps": [], "first_wrong": None}, "expected a prompt"),
        ({"prompt": "q", "steps": ["a"]}, "expected the first wrong step in one of"),
        ({"prompt": "q", "steps": ["a"], "first_wrong": 0.5}, "first_wrong is float"),
        ({"prompt": "q", "completions": ["a", "b"], "labels": [True]}, "1 labels for 2 steps"),
        ({"prompt": "q", "steps": ["a"], "first_wrong": 0, "shares": [1.5]}, "a share is 1.5"),
    ],
)
def test_bad_rows_say_what_is_wrong(row, message):
    with pytest.raises(DataError, match=message):
        step_label(row)


def test_files_of_other_tools(tmp_path):
    rows = [
        {"prompt": "q", "steps": ["a", "b"], "first_wrong": 1, "annotator": "x", "source": "human"},
        {"problem": "q", "steps": ["a", "b"], "label": -1},
        {"input": "q", "steps": "['a', 'b']", "mistake_index": None},
        {"prompt": [{"role": "user", "content": "q"}], "completions": ["a", "b"], "labels": [True, False]},
        {"prompt": "q", "steps": ["a"], "first_wrong": 5},
    ]
    path = tmp_path / "steps.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    loaded = load_steps(path)
    assert [label.first_wrong for label in loaded.records] == [1, None, None, 1]
    assert loaded.records[0].annotator == "x" and [r.line for r in loaded.refused] == [5]
    assert len({label.prompt.text for label in loaded.records}) == 1


def test_first_error_by_hand():
    truth, predicted = [None, None, 1, 2], [None, 0, 1, 1]
    assert first_error_f1("x", predicted, truth).value == pytest.approx(0.5)  # half of the right, half of the wrong
    assert modal_first([None, 2, 1, 2]) == 2
    with pytest.raises(DataError, match="2 of 2 solutions have a wrong step"):
        first_error_f1("x", [1, 1], [1, 1])


def test_a_begun_answer_is_continued_as_it_would_have_gone():
    """At temperature 0, what follows the beginning of an answer is the rest of that answer."""
    backbone = tiny_backbone()
    config = SamplerConfig(max_new_tokens=8, temperature=0.0)
    [prompt] = prompts(1)
    [whole] = LocalSampler(backbone, config).generate([prompt], adapter=None, seed=0)
    beginning = backbone.chat.decode(whole.tokens[:3], strip=False)
    begun = ContinuingSampler(backbone, config, {prompt.id: beginning})
    assert begun.prompt_tokens(prompt)[: len(whole.prompt_tokens)] == whole.prompt_tokens
    if begun.prompt_tokens(prompt) == whole.prompt_tokens + whole.tokens[:3]:
        [rest] = begun.generate([prompt], adapter=None, seed=0)
        assert rest.tokens[:5] == whole.tokens[3:8]
    tries = continuations(backbone, config, [(prompt, beginning), (prompt, "a ")], tries=2, seed=0)
    assert [len(group) for group in tries] == [2, 2] and tries[0][0].text.startswith(beginning)


def test_policy_learns_from_process_and_outcome_rewards(trained):
    """The policy takes fewer of the steps that the process reward model calls wrong, and still ends its turns."""
    role, _ = trained
    scorer = ProcessScorer(role, "\n")
    step_reward = scorer.reward(ProcessReward())
    whole_reward = scorer.reward(ProcessReward(score="minimum"))

    def score(rollouts):
        return {"process": step_reward(rollouts), "outcome": [float("e" in r.text) for r in rollouts]}

    settings = PpoConfig(
        adapter=LORA, steps=12, prompts=8, group=2, sampler=SamplerConfig(max_new_tokens=6), policy=STEADY,
        critic=STEADY, missing_eos=None,
    )  # fmt: skip
    rows = []
    roles = RlRoles.on(role.backbone, LORA, seed=1)
    train_rl(roles, prompts(16), score, settings, seed=2, session=Session(log=rows.append))
    first = sum(r["reward/process"] + r["reward/outcome"] for r in rows[:3]) / 3
    last = sum(r["reward/process"] + r["reward/outcome"] for r in rows[-3:]) / 3
    assert last > first + 0.1
    [rollout] = LocalSampler(role.backbone, settings.sampler).generate(prompts(1), adapter=None, seed=0)
    placed = step_reward([rollout])[0]
    assert len(placed) == len(split_steps(rollout.text, "\n")) and all(-1 <= x <= 0 for _, x in placed)
    assert whole_reward([rollout])[0] == pytest.approx(min(x + 1 for _, x in placed))
    assert torch.isfinite(torch.tensor([x for _, x in placed])).all()
