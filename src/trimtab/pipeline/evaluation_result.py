"""``evaluation.json``: the result of the evaluation stage."""

from pathlib import Path

from trimtab.evals import Evaluation
from trimtab.files import write_json
from trimtab.storage import read_record

FILE = "evaluation.json"
"""Name of the file in the folder of the evaluation stage."""


def write_evaluation(folder: Path, result: Evaluation) -> None:
    """Write the result into the folder of the evaluation stage."""
    write_json(folder / FILE, result.model_dump(mode="json"))


def read_evaluation(folder: Path) -> Evaluation:
    """Read the result from the folder of the evaluation stage.

    Raises:
        DataError: the file is missing, damaged, or no such result.
    """
    return read_record(folder / FILE, Evaluation)
