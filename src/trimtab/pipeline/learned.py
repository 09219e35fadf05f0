"""Which preference was learned from in which optimiser step: the record that leads from a weight back to a click."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from trimtab.pipeline.context import Context
from trimtab.records import Preference, Record, read_records, write_records
from trimtab.storage import read_metrics
from trimtab.trainers import Ranking, learnable, steps_of_examples

LEARNED = "learned.jsonl"
"""File in the folder of a stage that trains on preferences."""


class Learned(Record):
    """What a model of a stage did with one preference."""

    model: str
    """``reward``, or another reward model of the stage (``member_2``, ``words``, ``heldout``); ``align``: the
    policy."""
    preference: str
    """Its id."""
    round: int
    """The round whose labels it was made from."""
    judgements: tuple[str, ...]
    """Ids of the judgements it was made from."""
    part: Literal["train", "held_out", "nothing_to_learn"]
    """``train``: learned from; ``held_out``: kept out to measure; ``nothing_to_learn``: a tie, for this loss."""
    steps: tuple[int, ...] = ()
    """Optimiser steps, from 1, whose gradient it is in."""


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
    """Write what a finished training did with each preference; returns the file's name.

    Args:
        context: of the stage.
        stage: its name; also the name of its first or only model.
        preferences: the usable ones.
        rankings: the same as tokens.
        models: by name, the places of the preferences that each model was given, in the trainer's order.
        batch: preferences of a step.
        ties: True: tied answers were learned from.
    """
    rounds = _rounds(context)

    def of_model(model: str, given: Sequence[int]) -> Iterator[Learned]:
        steps = _steps(context, stage, model, given, rankings, batch=batch, ties=ties)
        places = set(given)
        for i, p in enumerate(preferences):
            yield Learned(
                model=model,
                preference=p.id,
                round=rounds.get((p.id, p.judgements), context.run.number),
                judgements=p.judgements,
                part="train" if i in steps else "nothing_to_learn" if i in places else "held_out",
                steps=tuple(step + 1 for step in steps.get(i, ())),
            )

    write_records(
        context.folder(stage) / LEARNED, (row for name, given in models.items() for row in of_model(name, given))
    )
    return LEARNED


def _steps(
    context: Context,
    stage: str,
    model: str,
    given: Sequence[int],
    rankings: Sequence[Ranking],
    *,
    batch: int,
    ties: bool,
) -> dict[int, Sequence[int]]:
    """Optimiser steps, from 0, that each learned preference is in; none for a bag of words, which has no steps."""
    learned = [given[i] for i in learnable([rankings[i] for i in given], ties=ties)]
    part = "" if model == stage else model
    log = read_metrics(context.folder(stage) / part / "metrics.jsonl")
    if not log:
        return {i: () for i in learned}
    seed = context.seed(stage if not part else f"{stage}/{part}")
    return dict(zip(learned, steps_of_examples(len(learned), batch, log[-1]["step"], seed), strict=True))


def _rounds(context: Context) -> dict[tuple[str, tuple[str, ...]], int]:
    """The round of each preference of earlier rounds: the same answers may be compared in several."""
    return {
        (p.id, p.judgements): run.number
        for run in context.run.earlier()
        for p in read_records(run.stage("preferences") / "preferences.jsonl", Preference)
    }
