"""The table of methods: every configuration has its row, and no method is named anywhere else."""

import ast
from pathlib import Path
from typing import get_args

import pytest

import trimtab
from trimtab.trainers import METHODS, OFFLINE, ONLINE, KtoConfig, PairConfig, RlConfig, methods_with

SOURCE = Path(trimtab.__file__).parent


def test_every_configuration_has_one_row():
    assert {row.config for row in ONLINE.values()} == set(get_args(RlConfig))
    assert {row.config for row in OFFLINE.values()} == {*get_args(PairConfig), KtoConfig}
    assert list(METHODS) == [*ONLINE, *OFFLINE] and len(METHODS) == 28
    labels = [row.label for row in METHODS.values()]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("name", METHODS)
def test_the_objective_is_a_sentence_with_the_settings_in_it(name):
    row = METHODS[name]
    text = row.objective(row.config())
    assert text.startswith(("min ", "max ")) and "{" not in text


def test_what_the_rows_say_is_what_the_papers_say():
    assert methods_with(step_rewards=True) == ["ppo", "reinforce_pp", "reinforce_pp_baseline"]
    assert methods_with(critic=True) == ["ppo"]
    assert methods_with(soft_labels=True) == ["dpo", "ipo", "sppo"]
    assert methods_with(reference=False) == ["orpo", "simpo", "cpo"]


@pytest.mark.parametrize(
    "name", ["dr_grpo", "dapo", "gspo", "cispo", "reinforce_pp_baseline", "online_dpo", "nash_md", "xpo", "orpo", "cpo"]
)
def test_a_method_is_named_where_its_settings_are_and_nowhere_else(name):
    """As a string of its own; messages may mention one."""
    named = set()
    words = {
        SOURCE / "conformance" / "goldens.py",
        SOURCE / "metrics" / "training.py",
    }  # formulas, explanations
    for path in set(SOURCE.rglob("*.py")) - words:
        nodes = ast.walk(ast.parse(path.read_text()))
        if any(isinstance(node, ast.Constant) and node.value == name for node in nodes):
            named.add(path.name)
    assert named == {"rl_config.py" if name in ONLINE else "offline_config.py"}
