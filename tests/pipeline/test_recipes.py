"""The recipes that ship, and their data."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.rates import fill_rates, rate_warnings
from trimtab.testing import save_model

RECIPES = Path(__file__).parents[2] / "recipes"
DATA = RECIPES / "data"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_recipes_say_what_they_teach_and_what_it_costs(name):
    config = load_recipe(RECIPES / f"{name}.yaml")
    assert config.about and config.capability is not None


@pytest.mark.parametrize("name", NAMES)
def test_learning_rates_are_near_the_defaults(name, tmp_path):
    model = save_model(tmp_path / "model")  # narrower than the default model, with the same default rates
    config = load_recipe(RECIPES / f"{name}.yaml", [f"model.name={model}"])
    assert rate_warnings(fill_rates(config)) == []


def test_dpo_learns_from_what_the_quickstart_learns_from():
    quickstart, dpo = (load_recipe(RECIPES / f"{name}.yaml") for name in ("quickstart", "quickstart-dpo"))
    for section in ("seed", "model", "data", "gold", "sft", "sample", "label", "evaluate"):
        assert getattr(dpo, section) == getattr(quickstart, section), section


def test_demonstrations_of_questions_have_no_set_phrases():
    answers = [row["messages"][-1]["content"] for row in rows("questions-demonstrations.jsonl")]
    phrases = Counter()
    for answer in answers:
        words = re.findall(r"[\w'’]+", answer.lower())
        phrases.update({" ".join(three) for three in zip(words, words[1:], words[2:], strict=False)})
    assert [(phrase, n) for phrase, n in phrases.items() if n > 0.02 * len(answers)] == []


@pytest.mark.parametrize("name", ["headlines-prompts", "headlines-heldout"])
def test_key_facts_stand_in_the_note(name):
    for row in rows(f"{name}.jsonl"):
        note = row["prompt"].partition("\n\n")[2].lower()
        assert row["facts"] and [fact for fact in row["facts"] if fact.lower() not in note] == []
