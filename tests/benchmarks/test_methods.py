"""Every method's recipe on the quickstart is one that a run accepts."""

from pathlib import Path

import pytest
import yaml

from benchmarks.methods import recipe_of, sections
from trimtab.pipeline.config import load_recipe
from trimtab.trainers import METHODS

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
SECTIONS = sections(steps=1, epochs=0.1)


@pytest.mark.parametrize("name", SECTIONS)
def test_the_recipe_of_a_method_is_accepted(tmp_path, name):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_of(yaml.safe_load(QUICKSTART.read_text()), SECTIONS[name])))
    assert load_recipe(file).align.method == SECTIONS[name]["method"]  # pyright: ignore[reportOptionalMemberAccess]


def test_no_method_is_left_out():
    assert {section["method"] for section in SECTIONS.values()} == set(METHODS)
