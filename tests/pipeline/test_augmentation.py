"""Copies of preferences: what they say, how many, and whether a reward model pays less for form after them."""

import random
from typing import Any, cast

import pytest
import torch

from trimtab.conformance.tabular import LinearReward
from trimtab.evals import edit_effects
from trimtab.evals.baselines import surface_features
from trimtab.pipeline.augmentation import AugmentConfig, augmented, restyle
from trimtab.records import Completion, Preference, Prompt
from trimtab.trainers import OptimizerConfig, Ranking, RewardConfig, train_reward

WORDS = "tea milk bread salt stone river cloud wind apple chair paper light".split()


def preferences(count: int, seed: int = 0) -> list[Preference]:
    """Simulated annotators who like long answers and praise."""
    draw = random.Random(seed)
    rows = []
    for n in range(count):
        texts = []
        for _ in range(2):
            body = " ".join(" ".join(draw.choices(WORDS, k=4)).capitalize() + "." for _ in range(draw.randint(1, 5)))
            texts.append(f"What a good question! {body}" if draw.random() < 0.3 else body)
        liked = [len(text) / 40 + 2 * ("question" in text) + draw.gauss(0, 0.5) for text in texts]
        best = int(liked[1] > liked[0])
        rows.append(
            Preference.pair(Prompt.from_text(f"prompt {seed}/{n}"), texts[best], texts[1 - best], judgements=(f"j{n}",))
        )
    return rows


def test_copies_lose_or_tie_and_lead_back_to_the_judgements():
    rows = preferences(20)
    shares = {"shuffled": 0.5, "flattery": 0.5, "padding": 0.25, "repetition": 0.1, "neutral": 1.0}
    copies, origins, counts = augmented(rows, AugmentConfig(**shares), ties=False, seed=3)
    one_sentence = sum(p.completions[0].text.count(".") + p.completions[0].text.count("!") == 1 for p in rows)
    assert counts.pop("neutral not possible", 0) == one_sentence
    assert counts == {"shuffled": 10, "flattery": 10, "padding": 5, "repetition": 2, "neutral": 20 - one_sentence}
    for copy, origin in zip(copies, origins, strict=True):
        kind, source = copy.metadata["augmented"], rows[origin]
        assert copy.prompt == source.prompt and copy.judgements == source.judgements
        assert copy.completions[0] == source.completions[0] and copy.id == f"{source.id}/{kind}"
        assert copy.probability == (0.5 if kind == "neutral" else None)
        assert copy.ranks == ((0, 0) if kind == "neutral" else (0, 1))
        if kind == "shuffled":
            assert copy.completions[1].text in {p.completions[0].text for p in rows if p.prompt != source.prompt}
    assert augmented(rows, AugmentConfig(**shares), ties=False, seed=3)[0] == copies
    assert augmented(rows, AugmentConfig(neutral=1.0), ties=True, seed=3)[0][0].probability is None


def test_a_soft_label_says_which_answer_is_best():
    row = preferences(1)[0].model_copy(update={"probability": 0.2})
    [copy], _, _ = augmented([row], AugmentConfig(flattery=1.0), ties=False, seed=0)
    assert copy.completions[0] == row.completions[1] and copy.probability is None


def test_one_prompt_has_no_other_answers():
    copies, _, counts = augmented(preferences(1), AugmentConfig(shuffled=1.0), ties=False, seed=0)
    assert copies == [] and counts == {"shuffled not possible": 1}


def test_contractions_are_written_out():
    assert restyle("Don't worry, it's fine.", random.Random(0)) == "Do not worry, it is fine."
    assert restyle("One. Two.", random.Random(0)) == "One.\nTwo."


def features_of(text: str) -> list[float]:
    """Form, and words of praise, which differ between training and test."""
    low = text.lower()
    praised = sum(word in low for word in ("question", "wonderful", "great thing", "admire", "smart", "excellent"))
    lines = text.splitlines()
    return [*surface_features(text), float(praised), len(set(lines)) / max(1, len(lines))]


@pytest.mark.parametrize("kind", ["plain", "augmented"])
def test_sensitivity_to_held_out_edits(kind: str):
    """Planted: annotators like long and flattering answers. The edits of the test are not those of the training."""
    train, held = preferences(120), preferences(40, seed=1)
    shares = {name: 1.0 for name in ("flattery", "padding", "repetition")}
    if kind == "augmented":
        train += augmented(train, AugmentConfig(**shares), ties=False, seed=0)[0]
    table = torch.tensor([features_of(c.text) for p in train for c in p.completions], dtype=torch.float64)
    mean, std = table.mean(0), table.std(0).clamp(min=1e-6)
    rankings = [
        Ranking(
            id=p.id, sequences=[[0, 2 * i], [0, 2 * i + 1]], prompt_length=1, ranks=p.ranks, probability=None,
            margin=None, weight=1.0,
        )
        for i, p in enumerate(train)
    ]  # fmt: skip
    role = LinearReward((table - mean) / std)
    steady = OptimizerConfig(lr=0.1, schedule="cosine", warmup=0.0, max_grad_norm=None, weight_decay=0.01)
    config = RewardConfig(optimizer=steady, batch=len(rankings), epochs=30, micro_batch_tokens=1 << 22)
    train_reward(cast(Any, role), rankings, config, seed=0)

    def score(rows: Any) -> list[list[float]]:
        texts = [(torch.tensor([features_of(c.text) for c in p.completions]).double() - mean) / std for p in rows]
        return [role.scalar(x).squeeze(-1).tolist() for x in texts]

    effects = {e.edit: e for e in edit_effects(held, score(held), score)}
    for edit in ("flattery", "padding", "repetition"):
        raised = effects[edit].raised.value
        assert raised is not None
        if kind == "plain":
            assert raised > 0.8, edit
        else:
            assert raised < 0.3, edit


def test_an_answer_keeps_its_ending():
    p = preferences(1)[0]
    cut = p.model_copy(update={"completions": (Completion(text="Tea is", finish_reason="length"), p.completions[1])})
    [copy], _, _ = augmented([cut], AugmentConfig(padding=1.0), ties=False, seed=0)
    assert copy.completions[1].finish_reason == "length"
