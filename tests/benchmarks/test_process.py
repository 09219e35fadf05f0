"""The benchmark of process reward models: its parts on invented answers and traces."""

import gzip
import json
import random
from types import SimpleNamespace
from typing import Any

from benchmarks.process import bbmistake, choices
from trimtab.feedback.generated_tasks import generate_tasks
from trimtab.records import Prompt, Rollout


def test_choices_by_hand():
    [task] = generate_tasks("sums", 1, seed=0)
    prompt = Prompt.from_text(task.question, solution=list(task.steps))
    texts = ["\n".join(task.steps), "Answer: 1", "Answer: 1", "Answer: 2"]
    answers = [
        Rollout(id=str(i), prompt=prompt, prompt_tokens=[1], tokens=[1], logprobs=[0.0], text=text,
                finish_reason="stop", weight_version=0)
        for i, text in enumerate(texts)
    ]  # fmt: skip
    process: Any = SimpleNamespace(steps=lambda _: [[(0, 2.0), (1, 2.0)], [(0, 1.0)], [(0, 1.0)], [(0, 3.0)]])
    outcome: Any = SimpleNamespace(steps=lambda _: [[(0, 2.0)], [(0, 1.0)], [(0, 1.0)], [(0, 0.0)]])
    result = choices(answers, 4, process, outcome)
    assert (result["mean of all"], result["oracle"]) == (0.25, 1.0)
    assert [result[k]["right"] for k in ("outcome", "process, last", "process, product", "majority")] == [1, 0, 0, 0]
    assert result["process, last"]["verdict"] == "does not beat the outcome model"


def test_planted_mistakes_are_found(tmp_path):
    draw = random.Random(0)
    rows = []
    for n in range(120):
        wrong = draw.choice([None, 0, 1, 2, 3])
        steps = [f"{'salt' if i == wrong else 'tea'} {draw.choice('abcdef')}" for i in range(4)]
        rows.append({"input": f"question {n}", "steps": steps, "mistake_index": wrong})
    with gzip.open(tmp_path / "bbmistake-word_sorting.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    result = bbmistake(tmp_path, ["word_sorting"])["word_sorting"]
    assert result["F1"][0] > 0.9 and result["modal index, found where there is one"] < 0.5
