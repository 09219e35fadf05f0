"""Tasks of lm-evaluation-harness (``lm_eval``, an extra) as suites: one item per document and metric.

lm-eval renders, samples and scores as usual, with its own wrapper of a Hugging Face model; the wrapped model is the
checkpoint with its adapter. No chat template is applied.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trimtab.errors import ConfigError, DataError, install_hint
from trimtab.evals.suites import Outcome, Suite, SuiteItem
from trimtab.models import Role


def require_lm_eval() -> None:
    """Check before a long evaluation that lm-eval is installed.

    Raises:
        ConfigError: lm-eval is not installed.
    """
    if find_spec("lm_eval") is None:
        raise ConfigError(f"--lm-eval needs the package lm-eval, which is not installed; {install_hint('lm-eval')}")


def measure_tasks(
    role: Role, tasks: Sequence[str], *, folder: Path | None = None, most: int | None = None
) -> tuple[list[Suite], dict[str, dict[str, Outcome]]]:
    """Run tasks on a model.

    Args:
        role: the model.
        tasks: names of the tasks.
        folder: folder of task definitions (YAML files) in addition to those of lm-eval; None: only lm-eval's.
        most: number of documents of each task, from the first on; None: all.

    Returns:
        a suite for each task, and the value of each document by each metric.

    Raises:
        ConfigError: there is no such task.
        DataError: lm-eval stopped with an error.
    """
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    manager = TaskManager(include_path=None if folder is None else str(folder))
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise ConfigError(
            f"--lm-eval {unknown[0]}: lm-eval knows no such task; see `lm-eval ls tasks`, or name the folder of your "
            "own with --lm-eval-folder"
        )
    chat = role.backbone.chat
    with role.computing():
        model = HFLM(pretrained=role.backbone.model, tokenizer=chat.tokenizer, max_length=chat.context)
        try:
            results = simple_evaluate(model, tasks=list(tasks), task_manager=manager, limit=most, bootstrap_iters=0)
        except Exception as error:  # a task's code, its data or a download may raise anything
            raise DataError(f"lm-eval stopped with {type(error).__name__}: {error}") from error
    samples: Mapping[str, Sequence[Mapping[str, Any]]] = (results or {}).get("samples", {})
    suites, outcomes = [], {}
    for task, documents in samples.items():
        values = {
            (document["doc_id"], metric): document[metric] for document in documents for metric in document["metrics"]
        }
        items = {f"{doc}/{metric}": (doc, metric, value) for (doc, metric), value in values.items()}
        name = f"lm-eval {task}"
        suites.append(
            Suite(
                name=name,
                source=f"lm-eval’s task {task}",
                items=tuple(
                    SuiteItem(id=key, cluster=str(doc), kind="lm_eval", part=metric, prompt="")
                    for key, (doc, metric, _) in items.items()
                ),
            )
        )
        outcomes[name] = {key: _outcome(metric, value) for key, (_, metric, value) in items.items()}
    return suites, outcomes


def _outcome(metric: str, value: Any) -> Outcome:
    """The value of a document; metrics that exist only for a whole corpus have none."""
    if isinstance(value, bool | int | float):
        return Outcome(value=float(value))
    return Outcome(reason=f"{metric} is no number of one document")
