"""Files of a round made from votes, besides its labels: how the served models compare, and wrong refusals."""

from collections.abc import Sequence
from pathlib import Path

from trimtab.errors import DataError
from trimtab.evals import length_controlled, words
from trimtab.feedback import model_wins
from trimtab.feedback.votes import canonical_ranks
from trimtab.pipeline.config import VotesConfig
from trimtab.records import Comparison, Judgement, Rating, Record, read_records
from trimtab.storage import RunFolder, read_record

REFUSALS = "refusals.jsonl"
"""Refusals that people call unjustified, for a person to decide."""
THUMBS = "thumbs.jsonl"
"""Thumbs on single answers, if the round's method learns from them."""
LEARNED_THUMBS = "thumbs.json"
"""Ids of the thumbs that an alignment learned from, and of those that it used only for measurement."""
MEASURED = "votes.json"
"""Results of the votes on the served models, and what was left out."""


class WrongRefusal(Record):
    """An answer that was voted an unjustified refusal."""

    vote: str
    """Id of the vote."""
    annotator: str
    """Pseudonym of the voter."""
    text: str
    """The prompt."""
    answers: tuple[str, ...]
    """The answers."""
    models: tuple[str | None, ...]
    """Models that answered."""
    guard: str | None
    """Version of the guard that blocked it; None: the model itself refused."""


class EqualLength(Record):
    """A rate of preference at equal length, with its 95 % interval."""

    rate: float
    """The rate."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


class ServedPair(Record):
    """How often one served model was preferred over another; models are named with their checkpoints."""

    model: str
    """Whose wins are counted."""
    rival: str
    """The other model."""
    rate: float
    """Share of comparisons won; a tie counts half."""
    low: float
    """Lower end of the 95 % Wilson interval, clustered by prompt."""
    high: float
    """Upper end."""
    n: int
    """Comparisons."""
    wins: int
    """Comparisons that ``model`` won."""
    ties: int
    """Comparisons without a difference."""
    losses: int
    """Comparisons that ``rival`` won."""
    equal_length: EqualLength | None
    """At equal length; None: too few votes."""


class MeasuredVotes(Record):
    """The content of :data:`MEASURED`."""

    pairs: tuple[ServedPair, ...]
    """Every pair of served models."""
    dropped: dict[str, int]
    """Votes that were left out, by reason."""
    project: str
    """Where the votes came from."""


def read_measured(label: Path) -> MeasuredVotes:
    """Read what the votes say of the served models from the folder of the label stage.

    Raises:
        DataError: the file is missing, damaged, or no such result.
    """
    return read_record(label / MEASURED, MeasuredVotes)


def is_export(folder: Path) -> bool:
    """Does a folder hold votes as an export, not as a project?"""
    return (folder / "judgements.jsonl").is_file()


def check_votes_folder(config: VotesConfig, folder: Path) -> None:
    """Refuse a folder that holds no votes.

    Args:
        config: the round's settings of votes.
        folder: where ``config.project`` is.

    Raises:
        DataError: the folder holds neither a project nor a whole export, and no database is named.
    """
    if is_export(folder):
        if not (folder / "comparisons.jsonl").is_file():
            raise DataError(
                f"{config.project}: holds judgements.jsonl without comparisons.jsonl, which has the answers; export "
                "the project again with `trimtab data export`"
            )
    elif config.database is None and not (folder / "labels.db").is_file():
        raise DataError(
            f"{config.project}: holds neither labels.db nor judgements.jsonl; name the project of `trimtab serve "
            "--chat` or `trimtab annotate`, or an export in the format judgements"
        )


def thumbs_of(run: RunFolder) -> list[Rating]:
    """The thumbs that a round learns from."""
    file = run.stage("label") / THUMBS
    return read_records(file, Rating) if file.is_file() else []


def measure(items: Sequence[Comparison], judgements: Sequence[Judgement]) -> list[ServedPair]:
    """How often each served model was preferred over each other, by overall comparisons in random order.

    Judgements by a project's own criteria are not votes on models, and are skipped. The rate at equal length is
    estimated if there are enough votes.
    """
    named = [_with_checkpoints(item) for item in items]
    judgements = [j for j in judgements if j.criterion == "overall"]
    rows = []
    for wins in model_wins(named, judgements).pairs:
        rate = wins.rate
        assert rate.value is not None and rate.low is not None and rate.high is not None, "models that were compared"
        rows.append(
            ServedPair(
                model=wins.model,
                rival=str(wins.rival),
                rate=rate.value,
                low=rate.low,
                high=rate.high,
                n=rate.n,
                wins=wins.wins,
                ties=wins.ties,
                losses=wins.losses,
                equal_length=_at_equal_length(named, judgements, wins.model, str(wins.rival)),
            )
        )
    return rows


def _with_checkpoints(item: Comparison) -> Comparison:
    """The item with the checkpoint in each model's name, since names stay when a model is trained further."""
    checkpoints = item.metadata.get("checkpoints")
    if not isinstance(checkpoints, list) or len(checkpoints) != len(item.completions):
        return item
    answers = tuple(
        c.model_copy(update={"model": f"{c.model} ({str(checkpoint)[:8]})"})
        for c, checkpoint in zip(item.completions, checkpoints, strict=True)
    )
    return item.model_copy(update={"completions": answers})


def _at_equal_length(
    items: Sequence[Comparison], judgements: Sequence[Judgement], model: str, rival: str
) -> EqualLength | None:
    by_id = {item.id: item for item in items if {c.model for c in item.completions} == {model, rival}}
    outcomes, differences, prompts = [], [], []
    for j in judgements:
        item = by_id.get(j.item)
        if item is None or j.ranks is None or len(item.completions) != 2:
            continue
        first = next(i for i, c in enumerate(item.completions) if c.model == model)
        rank, rival_rank = canonical_ranks(j)[first], canonical_ranks(j)[1 - first]
        outcomes.append((rank < rival_rank) + (rank == rival_rank) / 2)
        differences.append(len(words(item.completions[first].text)) - len(words(item.completions[1 - first].text)))
        prompts.append(item.prompt.id)
    equal = length_controlled(outcomes, differences, prompts)
    return None if equal is None else EqualLength(rate=equal.rate, low=equal.low, high=equal.high)


def measured_lines(pairs: Sequence[ServedPair]) -> list[str]:
    """Lines about how the served models compare."""
    lines = []
    for p in pairs:
        at_equal = "" if p.equal_length is None else f"; at equal length {p.equal_length.rate:.0%}"
        lines.append(
            f"blind votes prefer {p.model} over {p.rival}: {p.rate:.1%} [{p.low:.1%}, {p.high:.1%}] of "
            f"{p.n} comparisons ({p.ties} ties{at_equal})"
        )
    return lines
