"""Rows that cannot be encoded: counted, named and called what they are."""

import json
from functools import partial
from types import SimpleNamespace

import pytest

from trimtab.errors import DataError
from trimtab.models import Chat
from trimtab.pipeline.context import LISTED, Context
from trimtab.records import Prompt
from trimtab.testing import TEMPLATE, save_model, tokenizer, toy_recipe

from .test_run import go

STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + TEMPLATE


def fitting(prompts: list[Prompt]) -> tuple[list[Prompt], dict[str, int], str]:
    lines: list[str] = []
    context = SimpleNamespace(ui=SimpleNamespace(say=lines.append))
    context.left_out = partial(Context.left_out, context)
    remaining, counts = Context._fitting(context, prompts, Chat(tokenizer(template=STRICT), context=48), 8, {})  # type: ignore[arg-type]
    return remaining, counts, "\n".join(lines)


def test_what_the_template_refuses_is_not_too_long():
    good, long = Prompt.from_text("warm tea"), Prompt.from_text("bread " * 60)
    told = [Prompt.from_text(f"tea {i}", system="be kind.") for i in range(LISTED + 2)]
    remaining, counts, printed = fitting([good, long, *told])
    assert (remaining, counts) == ([good], {"too_long": 1, "unrendered": len(told)})
    assert all(p.id in printed for p in told[:LISTED]) and told[-1].id not in printed
    assert "no system here" in printed and "and 2 more" in printed and "1 do not fit model.context" in printed


def test_where_none_is_left_the_reason_is_said():
    with pytest.raises(DataError, match=r"none of 1 prompts can be asked: 0 too long.*no system here"):
        fitting([Prompt.from_text("tea", system="be kind.")])


def test_one_row_that_the_template_refuses_does_not_stop_sft(tmp_path):
    save_model(tmp_path / "model", tokens=tokenizer(template=STRICT))
    recipe = toy_recipe(tmp_path)
    file = tmp_path / "data" / "demonstrations.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    bad = {"messages": [{"role": "system", "content": "be kind."}, *rows[0]["messages"]]}
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:7], bad, *rows[7:]]))
    ui = go(recipe, until="sft")
    printed = "\n".join(ui.lines)
    assert "left out" in printed and "no system here" in printed, printed
