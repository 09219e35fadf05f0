"""Sends the answers of an alarm to people: each next to another answer to its prompt, in an annotation project.

People see two answers without knowing which one raised the alarm. ``trimtab round RUN --votes PROJECT`` then learns
from their judgements.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from trimtab.errors import DataError
from trimtab.evals import RunAlarm
from trimtab.records import Completion, Rollout, read_records
from trimtab.records.annotation import Task
from trimtab.storage.labels import open_store


def queue_samples(
    project: Path, alarm: RunAlarm, values: Mapping[str, float], rollouts: Sequence[Rollout], samples: Path
) -> str:
    """Add an alarm's answers to a project; returns a sentence about how many were added and why others were not.

    Each answer is compared with the answer to the same prompt with the lowest value of the probe in the same step. If
    the step has no answer with another text, one of the latest earlier step with this prompt is used.

    Args:
        project: folder of the annotation project; created if missing.
        alarm: names the answers.
        values: the probe's value of each answer of the step.
        rollouts: the answers of the step.
        samples: folder of the answers of earlier steps.
    """
    by_id = {rollout.id: rollout for rollout in rollouts}
    tasks, without_rival = [], 0
    for rollout in (by_id[name] for name in alarm.samples):
        rival = _rival(rollout, values, rollouts, samples)
        if rival is None:
            without_rival += 1
            continue
        answers = [Completion(text=r.text, finish_reason=r.finish_reason) for r in (rollout, rival)]
        answers.sort(key=lambda answer: answer.text)  # so that the order does not reveal the alarm
        tasks.append(Task.of(rollout.prompt, answers, batch=f"alarm-{alarm.probe}-step-{alarm.step}"))
    project.mkdir(parents=True, exist_ok=True)
    with open_store(project) as store:
        added, refused = store.add(tasks)
    reasons = [f"{len(refused)} are there already or cannot be shown"] if refused else []
    reasons += [f"{without_rival} have no other answer to their prompt"] if without_rival else []
    return f"{added} answers wait for people in {project}" + (f" ({'; '.join(reasons)})" if reasons else "")


def _rival(rollout: Rollout, values: Mapping[str, float], rollouts: Sequence[Rollout], samples: Path) -> Rollout | None:
    """The answer to compare with; None: there is no other text."""
    group = [r for r in rollouts if r.prompt.id == rollout.prompt.id and _differs(r, rollout)]
    if group:
        return min(group, key=lambda r: values[r.id])
    earlier = (r for r in _stored_answers(samples) if r.prompt.id == rollout.prompt.id and _differs(r, rollout))
    return next(earlier, None)


def _differs(a: Rollout, b: Rollout) -> bool:
    return bool(a.text.strip()) and a.text.strip() != b.text.strip()


def _stored_answers(samples: Path) -> Iterator[Rollout]:
    """Stored answers, latest step first; a file that is damaged or being written is skipped."""
    for path in sorted(samples.glob("step-*.jsonl"), reverse=True):
        try:
            yield from read_records(path, Rollout)
        except DataError:
            continue
