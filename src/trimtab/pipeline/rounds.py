"""The next round of a finished run, from people's votes on its answers."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from trimtab.config import parse_config
from trimtab.errors import ConfigError, DataError
from trimtab.files import locate
from trimtab.pipeline.config import RunConfig, load_recipe, override
from trimtab.pipeline.recipe_checks import check_recipe
from trimtab.pipeline.run import PlannedRound, interruptible, origin, plan_stages, prepared, run_round
from trimtab.pipeline.scale import require_one_process
from trimtab.pipeline.ui import Ui
from trimtab.pipeline.vote_files import check_votes_folder
from trimtab.storage import RunFolder


def open_run(path: Path) -> RunFolder:
    """The folder of a run; a folder of one of its rounds is refused.

    Raises:
        DataError: there is no run, or the folder is one of its rounds.
    """
    if not (path / "config.yaml").is_file():
        raise DataError(f"{path}: no run (there is no config.yaml in it); give a run's folder, for example runs/NAME")
    run = RunFolder(path, create=False)
    if run.number > 1:
        raise DataError(f"{path}: is round {run.number} of a run; give the run's folder, {run.first.path}")
    return run


def recipe_of(run: RunFolder) -> Path:
    """The recipe's file, whose folder relative data paths refer to; the run's own copy if the file has moved."""
    return origin(run.path / "config.yaml")


def next_round(
    path: Path, votes: Path | None, *, database: str | None = None, overrides: Sequence[str] = (), ui: Ui | None = None
) -> RunFolder:
    """Make the next round of a run from votes, or finish the round that was begun.

    Args:
        path: the run's folder.
        votes: annotation project or export with the votes; None: the votes of the round that was begun.
        database: URL of a PostgreSQL database of the project.
        overrides: ``key=value`` settings of the round.
        ui: console.

    Returns:
        the round's folder.

    Raises:
        DataError: there is no run, the folder holds no votes (before anything is written), or there are no votes to
            learn from.
        ConfigError: this is one of several processes, the last round is not finished, or the round it was made from
            has changed.
        StorageError: the run is being written.
    """
    require_one_process(f"trimtab round {path}")
    run, ui = open_run(path), ui or Ui()
    with run.lock(), interruptible() as stopping:
        rounds = run.rounds()
        unfinished = unfinished_round(run)
        if unfinished is not None:
            ui.say(f"round {unfinished.number} was begun; continuing it")
        current = unfinished or run.round(len(rounds) + 1)
        previous = run.round(current.number - 1)
        check_finished(previous)
        basis = load_recipe((unfinished or previous).path / "config.yaml")
        if unfinished is None and basis.evaluate is None:  # rounds of `trimtab tune` leave the evaluation out
            first_recipe = load_recipe(run.path / "config.yaml")
            basis = basis.model_copy(update={"evaluate": first_recipe.evaluate, "balance": first_recipe.balance})
        config = _config(basis, votes, database, overrides)
        config, recipe = prepared(config), recipe_of(run)
        if config.scale.kind == "torchrun":
            ui.say("`trimtab round` runs in one process; scale is for `trimtab run`, and the results are the same")
        status = previous.status("align")
        assert status is not None, "it is finished"
        stages = plan_stages(config, recipe, current, start=status.fingerprint)
        if any(item.stage.name == "label" and item.state != "done" for item in stages):
            assert config.label is not None and config.label.votes is not None, "a round made from votes has both"
            check_votes_folder(config.label.votes, Path(locate(config.label.votes.project, recipe.parent)))
        planned = PlannedRound(run=RunFolder(current.path), stages=stages, start=status.fingerprint)
        run_round(config, recipe, planned, ui, stopping, rounds=current.number)
    return current


def unfinished_round(run: RunFolder) -> RunFolder | None:
    """The round from votes that was begun but is not finished; None: there is none."""
    return next((r for r in run.rounds() if _is_from_votes(r) and not _is_round_finished(r)), None)


def check_finished(run: RunFolder) -> None:
    """Refuse to build on a round that is not finished, or whose start has changed.

    Raises:
        ConfigError: the message names the stage, and what to run.
    """
    status = run.status("align")
    if status is None or status.state != "done":
        state = "has no policy" if status is None else "is not finished"
        raise ConfigError(
            f"{run.path}: round {run.number} {state}, so no round can start from it; finish it with "
            f"`{_command(run)}`. A recipe without align has no rounds"
        )
    if run.newest().number < run.number:
        raise ConfigError(
            f"{run.path}: round {run.number} was made from another round {run.number - 1} than the one that is there "
            f"now; make it again with `{_command(run)}`, or move {run.path} away"
        )


def _command(run: RunFolder) -> str:
    return f"trimtab round {run.first.path}" if _is_from_votes(run) else f"trimtab run {recipe_of(run.first)}"


def _is_from_votes(run: RunFolder) -> bool:
    label = load_recipe(run.path / "config.yaml").label
    return run.number > 1 and label is not None and label.source == "votes"


def _is_round_finished(run: RunFolder) -> bool:
    evaluated = load_recipe(run.path / "config.yaml").evaluate is not None
    stages = ("align", "evaluate", "report") if evaluated else ("align",)
    consistent = all(run.made_from(later, earlier) for earlier, later in pairwise(stages))
    return consistent and all(run.is_finished(stage) for stage in stages) and run.newest().number >= run.number


def _config(previous: RunConfig, votes: Path | None, database: str | None, overrides: Sequence[str]) -> RunConfig:
    """The recipe of a round: the recipe of the round before, but labelled by votes."""
    earlier_votes = None if previous.label is None else previous.label.votes
    if votes is None and earlier_votes is None:
        raise ConfigError(
            "nothing says where the votes are; name the project of `trimtab serve --chat` or `trimtab annotate` with "
            "--votes PROJECT"
        )
    values: dict[str, Any] = previous.model_dump(mode="json")
    settings = {} if earlier_votes is None else earlier_votes.model_dump(mode="json")
    if votes is not None:
        settings |= {"project": str(votes), "database": database}
    elif database is not None:
        settings["database"] = database
    label = {} if previous.label is None else {name: values["label"][name] for name in ("aggregate", "without")}
    values |= {"rounds": 1, "sample": None, "label": label | {"source": "votes", "votes": settings}}
    data = previous.data
    values["data"] |= {
        "preferences": None,
        "ratings": None,
        "prompts": data.prompts or data.preferences or data.ratings,
        "demonstrations": data.demonstrations or data.preferences,  # SFT is done and may have learned from these
    }
    for item in overrides:
        override(values, item)
    config = parse_config(RunConfig, values, where="the round's recipe")
    check_recipe(config)
    return config
