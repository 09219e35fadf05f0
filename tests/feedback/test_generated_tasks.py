"""Generated tasks: their solutions are right by another computation, and the checker finds planted mistakes."""

import re

import pytest

from trimtab.cli.app import run_app
from trimtab.errors import ScoringError
from trimtab.feedback.generated_tasks import TASKS, first_wrong_step, generate_tasks, right_steps, solved
from trimtab.records import Demonstration, Prompt, Rollout, load


def rollout(prompt: Prompt, text: str) -> Rollout:
    return Rollout(
        id="r", prompt=prompt, prompt_tokens=[1], tokens=[1], logprobs=[0.0], text=text, finish_reason="stop",
        weight_version=0,
    )  # fmt: skip


def test_answers_are_right_by_another_computation():
    for task in generate_tasks("sums", 50, seed=0):
        assert int(task.answer) == sum(map(int, re.findall(r"\d+", task.question)))
        assert all(eval(left) == int(right) for left, right in (s.split(" = ") for s in task.steps[:-1]))
    for task in generate_tasks("sorting", 50, seed=0):
        assert task.answer.split() == sorted(re.findall(r"\w+", task.question.partition(": ")[2]))
    for task in generate_tasks("tracking", 50, seed=0):
        holds = dict(re.findall(r"(\w+) has the (\w+)\.", task.question))
        for a, b in re.findall(r"(\w+) and (\w+) swap", task.question):
            holds[a], holds[b] = holds[b], holds[a]
        assert task.answer == holds[re.search(r"does (\w+) have", task.question)[1]]


@pytest.mark.parametrize("name", TASKS)
def test_tasks_are_different_and_the_same_for_a_seed(name):
    tasks = generate_tasks(name, 100, seed=1)
    assert len({task.question for task in tasks}) == 100 and tasks == generate_tasks(name, 100, seed=1)


def test_mistakes_are_found(tmp_path):
    [task] = generate_tasks("sums", 1, seed=0)
    prompt = Prompt.from_text(task.question, solution=list(task.steps))
    assert solved([rollout(prompt, "\n".join(task.steps)), rollout(prompt, "Answer: 0"), rollout(prompt, "")]) == [
        1,
        0,
        0,
    ]
    wrong = [task.steps[0], "1 + 1 = 3", task.steps[2]]
    assert first_wrong_step(task.steps, wrong) == 1 and first_wrong_step(task.steps, task.steps) is None
    assert first_wrong_step(task.steps, task.steps[:1]) == 0 and first_wrong_step(task.steps, [*task.steps, "x"]) == 3
    assert right_steps([rollout(prompt, "\n".join(wrong))]) == [[0.0, -1.0, -1.0]]
    with pytest.raises(ScoringError, match="no 'solution' among its metadata"):
        solved([rollout(Prompt.from_text("q"), "x")])


def test_command(tmp_path, capsys):
    out = tmp_path / "sums.jsonl"
    assert run_app(["data", "generate", "sums", str(out), "--count", "5", "--skip", "2"]) == 0
    assert "5 tasks" in capsys.readouterr().out
    [prompt, *_] = load(str(out), kind=Prompt).records
    assert prompt.metadata["solution"][-1].startswith("Answer: ") and prompt.metadata["task"] == "sums"
    assert len(load(str(out), kind=Demonstration).records) == 5
    assert run_app(["data", "generate", "poems", str(out)]) == 2
    assert "use one of sums, sorting, tracking" in capsys.readouterr().err
