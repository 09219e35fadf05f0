"""``judge.json``: the judges of a folder of AI labels, their constitution, and their agreement with people."""

from pathlib import Path
from typing import Any

from pydantic import model_validator

from trimtab.feedback import AgainstPeople, JudgeRun
from trimtab.files import write_json
from trimtab.records import Record, to_plain
from trimtab.storage import read_record

FILE = "judge.json"
"""Name of the file in the folder."""


class ConstitutionVersion(Record):
    """The constitution that the judges followed."""

    name: str
    """Name of the constitution."""
    version: str
    """Version of the constitution, which every judgement has as its guideline."""


class JudgeEntry(Record):
    """One judge of the folder."""

    identity: Any
    """Part of the keys of its questions, as JSON: the model and its settings; None in files of early versions."""
    run: JudgeRun
    """Biases, failures and cost."""
    people: AgainstPeople | None
    """Agreement with people; None: there are no labels by people."""
    edit: dict[str, int] | None
    """Number of pairs by the change of their label since the constitution was edited; None: it was not edited."""
    replies: str = ""
    """Path of its journal, relative to the folder; empty in files of early versions."""

    @model_validator(mode="before")
    @classmethod
    def _of_an_early_version(cls, values: Any) -> Any:
        """Fill in fields that early versions did not write; a default would not do, as defaults are never written."""
        return {"identity": None, "edit": None, **values} if isinstance(values, dict) else values


class Together(Record):
    """All judges of the folder together."""

    judges: tuple[str, ...]
    """Names of the judges."""
    people: AgainstPeople | None
    """Agreement of the ensemble with people; None: there are no labels by people."""


class JudgeResult(Record):
    """The result of judging a folder of items."""

    constitution: ConstitutionVersion
    """The constitution in force."""
    settings: dict[str, Any]
    """The :class:`~trimtab.feedback.JudgeConfig` as JSON."""
    judges: dict[str, JudgeEntry]
    """Judges by name."""
    ensemble: Together | None = None
    """All judges together; None, and not in the file, if there is only one."""


def write_judge_result(folder: Path, result: JudgeResult) -> None:
    """Write the result into the folder of the judges."""
    write_json(folder / FILE, to_plain(result))


def read_judge_result(folder: Path) -> JudgeResult:
    """Read the result from the folder of the judges.

    Raises:
        DataError: the file is missing, damaged, or no such result.
    """
    return read_record(folder / FILE, JudgeResult, next_step=_next_step(folder))


def _next_step(folder: Path) -> str | None:
    """In a run: delete the whole stage. Comparisons with people change the file, so it is no output of the stage."""
    stage = folder.parent
    if not (stage / "status.json").is_file():
        return None
    return f"delete the folder {stage} and run again; what judges have answered is not asked again"
