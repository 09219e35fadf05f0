"""Small tasks with a solution in steps and a checker: sums, sorting, and who holds what after swaps.

The tasks are for models that cannot solve real problems yet: steps can be labelled from rollouts only if some rollouts
reach the right answer. Each step has one right form, so a solution's first wrong step is found by comparison.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trimtab.errors import ScoringError
from trimtab.records import Rollout

TaskName = Literal["sums", "sorting", "tracking"]
TASKS: tuple[TaskName, ...] = ("sums", "sorting", "tracking")
ANSWER = "Answer: "
"""Begins the last line of a solution."""

_WORDS = (
    "apple bread cloud dance eagle flame grape house ink jewel kite lemon mango night ocean paper queen river stone "
    "table uncle violin water yacht zebra"
).split()
_PEOPLE = ("Ann", "Bob", "Cid", "Dan", "Eve")
_THINGS = ("ball", "book", "cup", "hat", "key", "lamp")


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratedTask:
    """A task and its solution."""

    name: TaskName
    """Kind of task."""
    question: str
    """The question."""
    steps: tuple[str, ...]
    """The right solution, line by line; the last one begins with ``Answer:``."""

    @property
    def answer(self) -> str:
        """The right answer."""
        return self.steps[-1].removeprefix(ANSWER)

    def row(self) -> dict[str, Any]:
        """A row of a data file: a demonstration, whose further columns the checker reads."""
        turns = [{"role": "user", "content": self.question}, {"role": "assistant", "content": "\n".join(self.steps)}]
        return {"messages": turns, "task": self.name, "solution": list(self.steps)}


def generate_tasks(name: TaskName, count: int, *, seed: int, size: int = 3, largest: int = 99) -> list[GeneratedTask]:
    """Distinct tasks of one kind; fewer than ``count`` if many tries find no more.

    Args:
        name: kind of task.
        count: number of tasks.
        seed: seed of the draw. Tasks of different seeds may overlap, so split one list into training and test.
        size: numbers to add, words to sort, or people who swap.
        largest: for ``sums``, the largest number to add.
    """
    if name not in TASKS:
        raise ScoringError(f"task {name!r}; use one of {', '.join(TASKS)}")
    rng = random.Random(f"{name}|{size}|{seed}")
    tasks: dict[str, GeneratedTask] = {}
    for _ in range(20 * count):
        if len(tasks) == count:
            break
        if name == "sums":
            question, steps = _sum(rng, size, largest)
        else:
            question, steps = _sorting(rng, size) if name == "sorting" else _tracking(rng, size)
        tasks.setdefault(question, GeneratedTask(name=name, question=question, steps=tuple(steps)))
    return list(tasks.values())


def _sum(rng: random.Random, size: int, largest: int) -> tuple[str, list[str]]:
    numbers = [rng.randint(1, largest) for _ in range(size)]
    total, steps = numbers[0], list[str]()
    for number in numbers[1:]:
        steps.append(f"{total} + {number} = {total + number}")
        total += number
    return f"Add {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}.", [*steps, f"{ANSWER}{total}"]


def _sorting(rng: random.Random, size: int) -> tuple[str, list[str]]:
    words = rng.sample(_WORDS, size)
    steps = [f"{place}: {word}" for place, word in enumerate(sorted(words), 1)]
    return f"Sort these words: {', '.join(words)}.", [*steps, ANSWER + " ".join(sorted(words))]


def _tracking(rng: random.Random, size: int) -> tuple[str, list[str]]:
    people, things = list(_PEOPLE[:size]), rng.sample(_THINGS, size)
    thing_of = dict(zip(people, things, strict=True))
    text = " ".join(f"{holder} has the {thing}." for holder, thing in thing_of.items())
    steps: list[str] = []
    for _ in range(size):
        first, second = rng.sample(people, 2)
        thing_of[first], thing_of[second] = thing_of[second], thing_of[first]
        text += f" {first} and {second} swap."
        steps.append(", ".join(f"{holder} {thing}" for holder, thing in thing_of.items()))
    person = rng.choice(people)
    return f"{text} What does {person} have?", [*steps, ANSWER + thing_of[person]]


def first_wrong_step(solution: Sequence[str], steps: Sequence[str]) -> int | None:
    """Index of the first step that differs from the right solution; None: all are right.

    A solution that ends too early is wrong at its last step.

    >>> first_wrong_step(["3 + 4 = 7", "Answer: 7"], ["3 + 4 = 8", "Answer: 8"])
    0
    """
    for place, step in enumerate(steps):
        if place >= len(solution) or step.strip() != solution[place]:
            return place
    return None if len(steps) == len(solution) else max(0, len(steps) - 1)


def solved(rollouts: Sequence[Rollout]) -> list[float]:
    """1 if the line that begins with ``Answer:`` gives the right answer, otherwise 0; the steps are not checked.

    Raises:
        ScoringError: a prompt has no ``solution`` among its metadata.
    """
    scores: list[float] = []
    for rollout in rollouts:
        answer = _solution(rollout)[-1].removeprefix(ANSWER)
        answer_line = next((s for s in reversed(rollout.text.splitlines()) if s.startswith(ANSWER.strip())), "")
        scores.append(float(answer_line.removeprefix(ANSWER.strip()).strip() == answer))
    return scores


def right_steps(rollouts: Sequence[Rollout]) -> list[list[float]]:
    """For each line of an answer, 0 before the first wrong one and −1 from there on: a rule-based process reward."""
    scores: list[list[float]] = []
    for rollout in rollouts:
        steps = [line for line in rollout.text.split("\n") if line.strip()] or [rollout.text]
        first_wrong = first_wrong_step(_solution(rollout), steps)
        scores.append([0.0 if first_wrong is None or i < first_wrong else -1.0 for i in range(len(steps))])
    return scores


def _solution(rollout: Rollout) -> list[str]:
    solution = rollout.prompt.metadata.get("solution")
    if not isinstance(solution, list) or not solution:
        raise ScoringError(
            f"prompt {rollout.prompt.id} has no 'solution' among its metadata; make the prompts with `trimtab data "
            "generate`, which writes that column"
        )
    return [str(step) for step in solution]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
