"""Rows that cannot be encoded: counted, named and called what they are."""

from functools import partial
from types import SimpleNamespace

import pytest

from trimtab.errors import DataError
from trimtab.models import Chat
from trimtab.pipeline.context import LISTED, Context
from trimtab.records import Prompt
from trimtab.testing import TEMPLATE, tokenizer

STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + TEMPLATE


def fitting(prompts: list[Prompt]) -> tuple[list[Prompt], dict[str, int], str]:
    said: list[str] = []
    context = SimpleNamespace(ui=SimpleNamespace(say=said.append))
    context.left_out = partial(Context.left_out, context)
    kept, counts = Context._fitting(context, prompts, Chat(tokenizer(template=STRICT), context=48), 8, {})  # type: ignore[arg-type]
    return kept, counts, "\n".join(said)


def test_what_the_template_refuses_is_not_too_long():
    good, long = Prompt.from_text("warm tea"), Prompt.from_text("bread " * 60)
    told = [Prompt.from_text(f"tea {i}", system="be kind.") for i in range(LISTED + 2)]
    kept, counts, said = fitting([good, long, *told])
    assert (kept, counts) == ([good], {"too_long": 1, "unrendered": len(told)})
    assert all(p.id in said for p in told[:LISTED]) and told[-1].id not in said
    assert "no system here" in said and "and 2 more" in said and "1 do not fit model.context" in said


def test_where_none_is_left_the_reason_is_said():
    with pytest.raises(DataError, match=r"none of 1 prompts can be asked: 0 too long.*no system here"):
        fitting([Prompt.from_text("tea", system="be kind.")])
