"""Which preference was learned from in which optimiser step: the record that leads from a weight back to a click."""

from collections.abc import Sequence
from typing import Literal

from trimtab.pipeline.context import Context
from trimtab.records import Preference, Record, read_records, write_records
from trimtab.storage import read_metrics
from trimtab.trainers import Ranking, learnable, steps_of_examples

LEARNED = "learned.jsonl"
"""File in the folder of a stage that trains on preferences."""


class Learned(Record):
    """What a stage did with one preference."""

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
    train: Sequence[int],
    *,
    batch: int,
    ties: bool = False,
) -> str:
    """Write what a finished training did with each preference; returns the file's name.

    Args:
        context: of the stage.
        stage: its name, which also names its seed.
        preferences: the usable ones.
        rankings: the same as tokens.
        train: places of those that were not held out, as they were given to the trainer.
        batch: preferences of a step.
        ties: True: tied answers were learned from.
    """
    folder = context.folder(stage)
    learned = [train[i] for i in learnable([rankings[i] for i in train], ties=ties)]
    total = read_metrics(folder / "metrics.jsonl")[-1]["step"]
    steps = dict(zip(learned, steps_of_examples(len(learned), batch, total, context.seed(stage)), strict=True))
    given, rounds = set(train), _rounds(context)
    write_records(
        folder / LEARNED,
        (
            Learned(
                preference=p.id,
                round=rounds.get((p.id, p.judgements), context.run.number),
                judgements=p.judgements,
                part="train" if i in steps else "nothing_to_learn" if i in given else "held_out",
                steps=tuple(step + 1 for step in steps.get(i, ())),
            )
            for i, p in enumerate(preferences)
        ),
    )
    return LEARNED


def _rounds(context: Context) -> dict[tuple[str, tuple[str, ...]], int]:
    """The round of each preference of earlier rounds: the same answers may be compared in several."""
    return {
        (p.id, p.judgements): run.number
        for run in context.run.earlier()
        for p in read_records(run.stage("preferences") / "preferences.jsonl", Preference)
    }
