"""What each documented command must leave behind or print: ``CHECKS``."""

import csv
import itertools
import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

from trimtab.pipeline.config import RunConfig, load_recipe
from trimtab.pipeline.plan import objective
from trimtab.pipeline.stages import STAGES


def option(arguments: list[str], name: str) -> str:
    """The value of an option."""
    return arguments[arguments.index(name) + 1]


def config_of(arguments: list[str]) -> RunConfig:
    """The recipe of a command line with its own overrides."""
    values = [value for name, value in itertools.pairwise(arguments) if name == "--set"]
    return load_recipe(Path(arguments[1]), values)


def states(arguments: list[str]) -> dict[str, str]:
    """State of each stage in the folder of the run."""
    stages = Path("runs", config_of(arguments).name, "stages")
    statuses = [json.loads(path.read_text()) for path in stages.glob("*/status.json")]
    return {status["stage"]: status["state"] for status in statuses}


def check_run(arguments: list[str], printed: str) -> None:
    """All stages of the recipe are done, and the report names the run."""
    config = config_of(arguments)
    wanted = {stage.name for stage in STAGES if stage.settings(config) is not None}
    assert wanted and states(arguments).items() >= dict.fromkeys(wanted, "done").items()
    assert config.name in Path("runs", config.name, "report.html").read_text()
    if "--json" in arguments:
        assert set(json.JSONDecoder().raw_decode(printed[printed.index("{") :])[0]["stages"]) >= wanted


TAKES_RECIPE = {"run", "plan", "report", "sft", "sample", "label", "reward", "align", "eval"}
"""Commands whose first argument is a recipe."""


def is_recipe(arguments: list[str]) -> bool:
    """Is a command's first argument a recipe, not a run's folder or one of its models?"""
    return arguments[0] in TAKES_RECIPE and not Path(arguments[1].partition(":")[0]).is_dir()


def check_report(arguments: list[str], printed: str) -> None:
    """The page of a run, or the one about several."""
    if is_recipe(arguments):
        check_run(arguments, printed)
    else:
        assert "Settings that differ" in Path("comparison.html").read_text()


def check_eval(arguments: list[str], printed: str) -> None:
    """The stage of a recipe, or the page of a comparison on suites."""
    if is_recipe(arguments):
        check_stage(arguments, printed)
    else:
        run = Path(arguments[1].partition(":")[0])
        out = Path(option(arguments, "--out")) if "--out" in arguments else run / "suites"
        assert json.loads((out / "suites.json").read_text())["rows"] and (out / "suites.html").exists()


def check_stage(arguments: list[str], printed: str) -> None:
    """The stage is done."""
    stage = {"eval": "evaluate"}.get(arguments[0], arguments[0])
    assert states(arguments)[stage] == "done"
    if "--evaluate" in arguments:
        name = Path(option(arguments, "--evaluate")).name
        folder = Path("runs", config_of(arguments).name, "reward-evaluation")
        assert json.loads((folder / f"{name}.json").read_text())["edits"] and (folder / f"{name}.svg").exists()
        assert "words" in printed and "Brier" in printed and "edit flattery" in printed
    run = Path("runs", config_of(arguments).name)
    if "--blind" in arguments:
        with open(option(arguments, "--blind"), newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) >= 2 and all(row["A"] is not None and row["preferred"] == "" for row in rows)
    if "--annotate" in arguments:
        assert (run.parent / f"{run.name}/blind-annotation" / "labels.db").exists()


def check_plan(arguments: list[str], printed: str) -> None:
    """Every stage of the recipe is in the table (whose cells may be narrow), and the objective below it."""
    config = config_of(arguments)
    shown = "".join(printed.split())
    assert [s.name for s in STAGES if s.settings(config) is not None and s.name[:5] not in shown] == []
    formulas = [line for line in objective(config) if not line.startswith(" ")]  # below them are shrunk settings
    assert formulas and [line for line in formulas if "".join(line.split()) not in shown] == []


def check_export(arguments: list[str], printed: str) -> None:
    """Each file of the manifest is there with as many rows as the manifest says."""
    folder = Path(arguments[3])
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert files and all((folder / name).is_file() for name in files)


def check_convert(arguments: list[str], printed: str) -> None:
    """No row was lost."""
    source, target = (Path(a).read_text().splitlines() for a in arguments[2:4])
    assert len(source) == len(target) > 0


def check_generate(arguments: list[str], printed: str) -> None:
    """As many tasks as were asked for."""
    assert len(Path(arguments[3]).read_text().splitlines()) == int(option(arguments, "--count"))


def check_queue(arguments: list[str], printed: str) -> None:
    """Every item of the queue has a propensity."""
    rows = [json.loads(line) for line in Path(arguments[2]).read_text().splitlines()]
    assert rows and all(0 < row["metadata"]["acquisition"]["propensity"] <= 1 for row in rows)


def check_backup(arguments: list[str], printed: str) -> None:
    """A whole database."""
    with sqlite3.connect(arguments[3]) as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)


def check_database(arguments: list[str], printed: str) -> None:
    """A project with a database, which holds every item of the file."""
    folder = Path(arguments[3] if arguments[0] == "data" else arguments[1])
    wanted = len(Path(option(arguments, "--items")).read_text().splitlines()) if "--items" in arguments else 0
    with sqlite3.connect(folder / "labels.db") as database:
        assert database.execute("select count(*) from items").fetchone()[0] >= wanted


def check_judge(arguments: list[str], printed: str) -> None:
    """Labels, and the biases that the page promises."""
    folder = Path(option(arguments, "--out"))
    assert json.loads((folder / "judge.json").read_text())["judges"] and (folder / "principles.json").exists()
    assert "position bias" in printed and "longer answer wins" in printed


def check_route(arguments: list[str], printed: str) -> None:
    """Every item has a route, and the queue is there."""
    folder = Path(arguments[1])
    routes = json.loads((folder / "routing.json").read_text())["routes"]
    assert sum(routes.values()) > 0 and (folder / "queue.jsonl").exists()


def check_doctor(arguments: list[str], printed: str) -> None:
    """Findings about the machine; with --conformance a table in which all rows pass."""
    if "--conformance" in arguments:
        assert "RLOO" in printed and "FAIL" not in printed
    else:
        assert "python" in printed and "torch" in printed
    if "--out" in arguments:
        assert "| RLOO" in Path(option(arguments, "--out")).read_text()


def prints(*texts: str) -> Callable[[list[str], str], None]:
    """A check that all texts were printed."""

    def check(arguments: list[str], printed: str) -> None:
        missing = [text for text in texts if text not in printed]
        assert not missing, f"{missing} not in {printed!r}"

    return check


def check_principles(arguments: list[str], printed: str) -> None:
    """The principle that was named, or several."""
    wanted = option(arguments, "--principle") if "--principle" in arguments else "id:"
    assert wanted in printed and "revision" in printed


def check_data(arguments: list[str], printed: str) -> None:
    """Every file is named, and none of its texts."""
    files = [a for a in arguments[2:] if not a.startswith("--")]
    assert all(Path(file).name in printed for file in files)
    texts = [line for file in files for line in re.findall(r'"prompt": "([^"]+)"', Path(file).read_text())]
    assert texts and not [text for text in texts if text in printed]


def check_agreement(arguments: list[str], printed: str) -> None:
    """A line of the statistics, or why there is none."""
    assert re.search("agree|judged", printed)


def check_chat(arguments: list[str], printed: str) -> None:
    """An answer."""
    assert printed.strip()


def check_serve(arguments: list[str], printed: str) -> None:
    """Every model is named, and a page if one was asked for."""
    run = Path(arguments[1]).name
    models = [value for name, value in itertools.pairwise(arguments) if name == "--model"]
    assert all(f"{run}-{model}" in printed for model in models) and "API key: sk-" in printed
    assert ("Chat page: http" in printed) == ("--chat" in arguments)


def check_round(arguments: list[str], printed: str) -> None:
    """The next round is done, and the page shows it."""
    run = Path(arguments[1])
    assert re.search(r"Round \d is done", printed) and '<section id="rounds">' in (run / "report.html").read_text()


def check_lineage(arguments: list[str], printed: str) -> None:
    """The judgements behind a figure."""
    if "--json" in arguments:
        assert json.loads(printed)["judgements"]
    else:
        assert "judgements of round 1" in printed


def check_withdraw(arguments: list[str], printed: str) -> None:
    """A new run, without the person."""
    gone = option(arguments, "--annotator")
    labels = Path(f"{arguments[2]}-without-{gone}") / "stages" / "label" / "judgements.jsonl"
    assert labels.is_file() and gone not in labels.read_text() and "the old run stays as it is" in printed


def check_init(arguments: list[str], printed: str) -> None:
    """A recipe that loads."""
    written = [p for p in Path().glob("*.yaml") if p.stat().st_size and not p.stem.endswith("constitution")]
    assert written and all(load_recipe(path) for path in written)


def check_model_export(arguments: list[str], printed: str) -> None:
    """A model or adapter in Hugging Face's layout."""
    folder = Path([a for a in arguments[2:] if not a.startswith("--")][1])
    assert {"config.json", "adapter_config.json"} & {path.name for path in folder.iterdir()}


def check_guard(arguments: list[str], printed: str) -> None:
    """A guard that loads, its report, and the table."""
    folder = Path(option(arguments, "--out") if "--out" in arguments else arguments[2])
    assert json.loads((folder / "report.json").read_text())["requests"]["families"]["plain"]
    assert (folder / "report.html").exists() and "harmless twins" in printed


CHECKS: dict[str, Callable[[list[str], str], None]] = {
    "run": check_run,
    "report": check_report,
    "methods": prints("dpo", "apo_zero"),
    "plan": check_plan,
    **dict.fromkeys(("sft", "sample", "label", "reward", "align"), check_stage),
    "eval": check_eval,
    "populations": prints("cohort", "people", "disagree"),
    "chat": check_chat,
    "serve": check_serve,
    "tune": prints("Tuning page: http", "/chat/enter/"),
    "judge": check_judge,
    "route": check_route,
    "constitution check": prints("principles", "version"),
    "constitution show": check_principles,
    "data check": check_data,
    "data convert": check_convert,
    "data generate": check_generate,
    "queue": check_queue,
    "curve": prints("labels: accuracy"),
    "data export": check_export,
    "data import": check_database,
    "data backup": check_backup,
    "data withdraw": check_withdraw,
    "round": check_round,
    "lineage": check_lineage,
    "annotate": check_database,
    "watch": prints("align: done"),
    "agreement": check_agreement,
    "doctor": check_doctor,
    "init": check_init,
    "model export": check_model_export,
    "guard train": check_guard,
    "guard evaluate": check_guard,
    "guard explain": prints("threshold", "words that move"),
}
"""By command, what must be so after it; a documented command without a check is an error."""
