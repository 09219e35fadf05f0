"""A written constitution: principles, their version, and the prompts made from them. Calls no model."""

from trimtab.constitution.guarding import Answers, GuardRule, Twin
from trimtab.constitution.principles import (
    DEFAULT,
    Change,
    Constitution,
    Principle,
    compare,
    load_constitution,
    parse_constitution,
)
from trimtab.constitution.prompts import (
    ask_critique,
    ask_revision,
    ask_violation,
    compare_answers,
    fenced,
    rate_answer,
    speaks_to_judge,
)

__all__ = [
    "DEFAULT",
    "Answers",
    "Change",
    "Constitution",
    "GuardRule",
    "Principle",
    "Twin",
    "ask_critique",
    "ask_revision",
    "ask_violation",
    "compare",
    "compare_answers",
    "fenced",
    "load_constitution",
    "parse_constitution",
    "rate_answer",
    "speaks_to_judge",
]
