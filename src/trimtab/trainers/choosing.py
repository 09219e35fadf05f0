"""Which method fits: a table of methods by the data they need, their cost and their known weakness.

Everything comes from the rows of :mod:`trimtab.trainers.methods` and the defaults of their settings.
"""

from dataclasses import dataclass
from typing import Literal

from trimtab.trainers.methods import METHODS, OfflineMethod, OnlineMethod

Data = Literal["prompts and rewards", "prompts and several rewards", "pairs", "rankings", "thumbs"]
"""What a method learns from. Prompts: the method samples the answers. Pairs, rankings: judged answers to one prompt; a
method for pairs uses every strict pair. Thumbs: single answers, liked or not."""

ORDER: tuple[Data, ...] = ("pairs", "rankings", "thumbs", "prompts and rewards", "prompts and several rewards")
"""Order of the table's rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A row of the table."""

    method: str
    """Its name in ``align.method``."""
    label: str
    """Its name for readers."""
    data: Data
    """What it learns from."""
    cost: str
    """What it costs in addition to the passes of the policy."""
    flaw: str
    """What it is known to do wrong."""
    soft_labels: bool
    """True: it can learn from P(first answer is better); False: only from certain labels, or not from comparisons."""
    start: bool
    """True: one to begin with."""


def choices() -> list[Choice]:
    """All methods, ordered by the data they need; within that, recommended ones first."""
    rows = [
        Choice(
            method=name,
            label=row.label,
            data=_data(row),
            cost=_online_cost(row) if isinstance(row, OnlineMethod) else _offline_cost(row),
            flaw=row.flaw,
            soft_labels=isinstance(row, OfflineMethod) and row.soft_labels,
            start=row.start,
        )
        for name, row in METHODS.items()
    ]
    return sorted(rows, key=lambda c: (ORDER.index(c.data), not c.start))


def _data(row: OnlineMethod | OfflineMethod) -> Data:
    if isinstance(row, OnlineMethod):
        return "prompts and rewards" if row.component_advantages is None else "prompts and several rewards"
    if row.ranking_loss is not None:
        return "rankings"
    return "pairs" if row.loss is not None else "thumbs"


def _online_cost(row: OnlineMethod) -> str:
    group = row.config.model_fields["group"].default
    answers = "1 sampled answer" if group == 1 else f"{group} sampled answers"
    opponent = "" if row.opponent is None else ", as many of an opponent"
    return f"{answers} a prompt{opponent}, the reference{', a critic' if row.critic else ''}"


def _offline_cost(row: OfflineMethod) -> str:
    if row.loss is None and row.ranking_loss is None:
        return "the reference and mismatched pairs in every step"
    if not row.reference:
        return "nothing"
    more = ", one more pass of the policy a step" if row.mean_ratio(row.config()) else ""
    return f"the reference, once{more}"
