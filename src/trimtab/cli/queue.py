"""``trimtab queue`` and ``trimtab curve``: which items to label next, and whether more labels would help."""

from pathlib import Path
from typing import Annotated

import typer


def queue(
    items: Annotated[str, typer.Argument(metavar="ITEMS", help="File of items that `trimtab annotate --items` takes.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The queue to write, for `trimtab annotate --items`.")],
    count: Annotated[int, typer.Option("--count", min=1, help="How many labels to ask for.")],
    scores: Annotated[
        Path | None,
        typer.Option(
            "--scores", metavar="FILE", help='JSON lines {"id": item, "scores": [[reward of each answer], …]}.'
        ),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option("--arm", metavar="NAME=SHARE", help="Arm: random, margin, variance, design. Default: random=1."),
    ] = None,
    test: Annotated[float, typer.Option("--test", help="Share of the labels that is a random test set.")] = 0.2,
    labelled: Annotated[
        str | None, typer.Option("--labelled", metavar="FILE", help="Preferences; their items are left out.")
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Seed of the draw and the test set; use the same one in later rounds.")
    ] = 0,
) -> None:
    """Choose the items to label next, and write them to a queue file with the propensity of each.

    Random choice is hard to beat: compare another arm with it before you trust that arm.

    Example: trimtab queue items.jsonl queue.jsonl --count 200
    """
    from trimtab.config import parse_config
    from trimtab.errors import ConfigError, DataError
    from trimtab.feedback.acquisition import AcquisitionConfig, arm_counts, choose_items, read_scores
    from trimtab.files import write_atomic
    from trimtab.records import Preference, load
    from trimtab.records.annotation import ACQUISITION, Task
    from trimtab.web.items_file import read_items

    shares: dict[str, float] = {}
    for given in arm or ["random=1"]:
        name, _, share = given.partition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            raise ConfigError(f"--arm {given!r}: expected NAME=SHARE, for example --arm margin=0.75") from None
    config = parse_config(AcquisitionConfig, {"count": count, "test": test, "arms": shares}, where="trimtab queue")
    rows = list(read_items(items))
    tasks = [row for row in rows if isinstance(row, Task)]
    known = {p.id for p in load(labelled, kind=Preference).records} if labelled else set[str]()
    open_tasks = {task.id: task for task in tasks if task.comparison is not None and task.id not in known}
    comparisons = [c for task in open_tasks.values() if (c := task.comparison) is not None]
    if not comparisons:
        raise DataError(f"{items}: none of {len(rows)} rows is a comparison that still needs a label")
    scored, dropped = read_scores(scores, comparisons) if scores else ([None] * len(comparisons), {})
    chosen = choose_items(comparisons, scored, config, seed=seed)
    drawn_tasks: list[Task] = []
    for c in chosen:
        task = open_tasks[comparisons[c.index].id]
        drawn = {ACQUISITION: {"arm": c.arm, "propensity": round(c.propensity, 9), "seed": seed}}
        drawn_tasks.append(task.model_copy(update={"metadata": task.metadata | drawn}))
    write_atomic(out, "".join(task.model_dump_json(exclude_defaults=True) + "\n" for task in drawn_tasks))
    arms = ", ".join(f"{name} {number}" for name, number in sorted(arm_counts(chosen).items()))
    typer.echo(f"{out}: {len(chosen)} of {len(comparisons)} items ({arms})")
    left_out = {
        "not an item": len(rows) - len(tasks),
        "not a comparison": sum(task.comparison is None for task in tasks),
        "labelled already": len({t.id for t in tasks} & known),
        "items without scores": sum(row is None for row in scored) if scores else 0,
    }
    for reason, number in {**left_out, **{f"rows of scores: {why}": n for why, n in dropped.items()}}.items():
        if number:
            typer.echo(f"  {number} {reason}")
    if len(chosen) < count:
        typer.echo(
            f"  {count - len(chosen)} fewer than requested: the items for the test set or for the arms are used up"
        )
    typer.echo(f"Next: trimtab annotate PROJECT --items {out}")


def curve(
    source: Annotated[str, typer.Argument(metavar="PREFERENCES", help="Labelled preferences, or a curve with --own.")],
    factor: Annotated[
        float, typer.Option("--factor", help="Predict for this many times the present number of labels, up to 4.")
    ] = 4.0,
    cluster: Annotated[
        str | None, typer.Option("--cluster", metavar="KEY", help="Metadata key to split by. Default: the prompt.")
    ] = None,
    own: Annotated[
        bool, typer.Option("--own", help='The file is a curve of your own model: {"sizes": […], "values": [[…], …]}.')
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the resamplings.")] = 0,
) -> None:
    """Estimate whether more labels would help, with a learning curve of six sizes and ten resamplings.

    The model is a bag of words and takes seconds to fit; a reward model may still improve where it does not.

    Example: trimtab curve preferences.jsonl
    """
    from trimtab.evals.label_value import read_curve, word_curve
    from trimtab.feedback.learning_curve import predict_gain
    from trimtab.records import Preference, load

    if own:
        measured = read_curve(Path(source))
    else:
        measured = word_curve(load(source, kind=Preference).records, cluster=cluster, seed=seed)
    outlook = predict_gain(measured, factor=factor, seed=seed)
    for size, row in zip(measured.sizes, measured.values, strict=True):
        typer.echo(
            f"{size:>8} labels: accuracy {row.mean():.1%} (spread {row.std(ddof=1):.1%} over {len(row)} resamplings)"
        )
    typer.echo(outlook.line())
