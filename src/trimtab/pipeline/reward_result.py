"""``reward.json``: normalisation of reward models' scores, and their accuracy on held-out preferences."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from trimtab.errors import DataError
from trimtab.evals import MemberErrors, RewardModelEval
from trimtab.feedback.annotator_facts import AnnotatorFacts
from trimtab.files import write_json
from trimtab.records import Record
from trimtab.storage import read_record
from trimtab.storage.run import REPLACE

FILE = "reward.json"
"""Name of the file in the folder of the reward stage."""

FIRST = "reward"
"""Name of the first reward model."""


class RewardModel(Record):
    """One reward model. A normalised score is (score − mean) / std."""

    name: str
    """``reward`` is the first one; then ``member_2`` and so on, ``words``, ``heldout``."""
    file: str
    """File of its weights in the stage's folder."""
    judges: bool
    """True: the policy is not trained on it; it only judges."""
    mean: float
    """Mean of its scores over answers that it was trained on."""
    std: float
    """Their standard deviation, at least 0.001."""
    preferences: int
    """Number of preferences that it learned from."""


class Objective(Record):
    """One objective of a reward model that has several."""

    mean: float
    """Mean of its scores over answers that it was trained on."""
    std: float
    """Their standard deviation, at least 0.001."""
    evaluation: RewardModelEval | None
    """Accuracy on the held-out preferences about this objective; None: there are none."""


class RewardResult(Record):
    """The result of the reward stage."""

    mean: float
    """Mean of the score that the policy is trained on (the first model's or the ensemble's) over training answers."""
    std: float
    """Standard deviation of that score, at least 0.001."""
    evaluation: RewardModelEval | None
    """Accuracy of that score on held-out preferences; None: none were held out."""
    models: tuple[RewardModel, ...] = ()
    """The reward models, the held-out one last; empty in files of versions that allowed only one."""
    errors: MemberErrors | None = None
    """The errors of several models together; None: there is one model, or no preference was held out."""
    objectives: dict[str, Objective] = Field(default_factory=dict)
    """Objectives by name; empty, and not in the file, if the recipe names none."""
    annotators: AnnotatorFacts | None = None
    """What was learned about annotators; None, and not in the file, if the model does not distinguish them."""


def write_reward_result(folder: Path, result: RewardResult) -> None:
    """Write the result into the folder of the reward stage."""
    absent = {name for name in ("objectives", "annotators") if not getattr(result, name)}
    write_json(folder / FILE, result.model_dump(mode="json", exclude=absent))


def read_reward_result(folder: Path) -> RewardResult:
    """Read the result from the folder of the reward stage.

    Raises:
        DataError: the file is missing, damaged, or no such result.
    """
    return read_record(folder / FILE, RewardResult)


def read_trained(folder: Path, objectives: Sequence[str] = ()) -> RewardResult:
    """Read the result, and check that the first reward model and these objectives are in it.

    Raises:
        DataError: as for :func:`read_reward_result`, or one of them is missing.
    """
    result = read_reward_result(folder)
    missing = [f"the objective {name!r}" for name in objectives if name not in result.objectives]
    if not result.models or result.models[0].name != FIRST or result.models[0].judges:
        missing.insert(0, f"the model {FIRST!r} as the first of models")
    if missing:
        raise DataError(
            f"{folder / FILE}: it lacks {', '.join(missing)}; the file is damaged or by another version of trimtab: "
            f"{REPLACE}"
        )
    return result
