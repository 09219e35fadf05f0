"""Records which preference was learned from in which optimiser step, so that weights can be traced to judgements."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from trimtab.pipeline.context import Context
from trimtab.records import Preference, Record, read_records, write_records
from trimtab.storage import read_metrics
from trimtab.trainers import Ranking, learnable, steps_of_examples

LEARNED = "learned.jsonl"
"""File in the folder of a stage that trains on preferences."""


class Learned(Record):
    """How a model of a stage used one preference."""

    model: str
    """``reward``, or another reward model of the stage (``member_2``, ``words``, ``heldout``); ``align``: the
    policy."""
    preference: str
    """Id of the preference."""
    round: int
    """The round from whose labels the preference was made."""
    judgements: tuple[str, ...]
    """Ids of the judgements from which the preference was made."""
    part: Literal["train", "held_out", "nothing_to_learn"]
    """``train``: learned from; ``held_out``: kept out for measurement; ``nothing_to_learn``: a tie, which the loss
    ignores."""
    steps: tuple[int, ...] = ()
    """Optimiser steps, from 1, whose gradient includes the preference."""


def write_learned(
    context: Context,
    stage: str,
    preferences: Sequence[Preference],
    rankings: Sequence[Ranking],
    models: Mapping[str, Sequence[int]],
    *,
    batch: int,
    ties: bool = False,
) -> str:
    """Write what a finished stage did with each preference; returns the file's name.

    Args:
        context: context of the stage.
        stage: name of the stage, and of its first or only model.
        preferences: the usable preferences.
        rankings: the same preferences as tokens.
        models: by name, the indices of the preferences that each model was given, in the trainer's order.
        batch: preferences per step.
        ties: True: tied answers were learned from.
    """
    rounds = _rounds(context)

    def of_model(model: str, indices: Sequence[int]) -> Iterator[Learned]:
        steps = _steps(context, stage, model, indices, rankings, batch=batch, ties=ties)
        given_indices = set(indices)
        for i, p in enumerate(preferences):
            yield Learned(
                model=model,
                preference=p.id,
                round=rounds.get((p.id, p.judgements), context.run.number),
                judgements=p.judgements,
                part="train" if i in steps else "nothing_to_learn" if i in given_indices else "held_out",
                steps=tuple(step + 1 for step in steps.get(i, ())),
            )

    write_records(
        context.folder(stage) / LEARNED, (row for name, indices in models.items() for row in of_model(name, indices))
    )
    return LEARNED


def _steps(
    context: Context,
    stage: str,
    model: str,
    indices: Sequence[int],
    rankings: Sequence[Ranking],
    *,
    batch: int,
    ties: bool,
) -> dict[int, Sequence[int]]:
    """Optimiser steps, from 0, that each learned preference is in; empty for a bag of words, which has no steps."""
    learned = [indices[i] for i in learnable([rankings[i] for i in indices], ties=ties)]
    part = "" if model == stage else model
    log = read_metrics(context.folder(stage) / part / "metrics.jsonl")
    if not log:
        return {i: () for i in learned}
    seed = context.seed(stage if not part else f"{stage}/{part}")
    return dict(zip(learned, steps_of_examples(len(learned), batch, log[-1]["step"], seed), strict=True))


def _rounds(context: Context) -> dict[tuple[str, tuple[str, ...]], int]:
    """Round of each preference of earlier rounds, by id and judgements: several rounds may compare the same answers."""
    return {
        (p.id, p.judgements): run.number
        for run in context.run.earlier()
        for p in read_records(run.stage("preferences") / "preferences.jsonl", Preference)
    }
