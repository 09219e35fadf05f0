"""Judging pairs with and without shared beginnings: ``python -m benchmarks.judging``.

The local judge scores ``--pairs`` invented pairs in both orders by :func:`trimtab.rollout.option_logprobs`, in blocks;
between the blocks a part of the same questions (``--separate`` pairs in all) is scored one prompt at a time, batch
1, vocabulary projected at the last position only, both options read from one pass. So both ways meet the same
machine, and what is quoted is the median over the blocks of the ratio of times per question. The largest
difference between the numbers must be below 1e-4. Answers are as long as those the recipes sample (about 40
tokens); ``--words`` makes them longer, which shares less.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch

from benchmarks.machine import machine, versions
from trimtab.constitution import compare_answers, load_constitution
from trimtab.files import write_json
from trimtab.models import Backbone, ModelConfig
from trimtab.records import Prompt
from trimtab.rollout import option_logprobs

WORDS = (
    "a bowl of warm soup and bread makes the evening easy when rain keeps you at home with a book you can cook it "
    "slowly add salt late taste often let it rest before you serve fresh herbs help too"
).split()


def questions(backbone: Backbone, pairs: int, words: int) -> list[list[int]]:
    """Token ids of all questions, both orders of a pair after each other."""
    draw, constitution = random.Random(0), load_constitution("default")

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=words)).capitalize() + "."

    found = []
    for n in range(pairs):
        prompt, a, b = Prompt.from_text(f"What do you say to {draw.choice(WORDS)} number {n}?"), text(), text()
        principle = constitution.draw(1, n)[0]
        found += [backbone.chat.prompt(compare_answers(prompt, x, y, principle)) for x, y in ((a, b), (b, a))]
    return found


@torch.no_grad()
def one_by_one(backbone: Backbone, prompts: Sequence[list[int]], options: Sequence[int]) -> list[list[float]]:
    """The plain way: a forward pass for each prompt."""
    found = []
    for prompt in prompts:
        tokens = torch.tensor([prompt], device=backbone.device)
        last = backbone.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0, -1]
        logprobs = backbone.head(last).float().log_softmax(-1)
        found.append([float(logprobs[option]) for option in options])
    return found


def timed(work: Callable[[], list[list[float]]]) -> tuple[list[list[float]], float, float]:
    """What comes out, and wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - wall, time.process_time() - cpu


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; exit code 1 if the numbers differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--separate", type=int, default=50)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--words", type=int, default=36)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    backbone = Backbone.load(ModelConfig(name=asked.model, context=2048))
    prompts = questions(backbone, asked.pairs, asked.words)
    a, b = (backbone.chat.tokenizer.encode(letter, add_special_tokens=False) for letter in "AB")
    option_logprobs(backbone, prompts[:4], [[a, b]] * 4)  # warm up
    rows: list[dict[str, float]] = []
    difference = 0.0
    size, few = 2 * asked.pairs // asked.blocks, max(1, 2 * asked.separate // asked.blocks)
    for start in range(0, size * asked.blocks, size):
        part = prompts[start : start + size]
        shared, wall, cpu = timed(lambda part=part: option_logprobs(backbone, part, [[a, b]] * len(part)))
        plain, wall_1, cpu_1 = timed(lambda part=part: one_by_one(backbone, part[:few], [a[0], b[0]]))
        pairs = zip(shared, plain, strict=False)
        difference = max(difference, *(abs(x - y) for s, p in pairs for x, y in zip(s, p, strict=True)))
        rows.append({"shared": wall / len(part), "separate": wall_1 / few})
        rows[-1] |= {"speedup": rows[-1]["separate"] / rows[-1]["shared"], "speedup_cpu": cpu_1 / few * len(part) / cpu}
    found = {name: median(row[name] for row in rows) for name in rows[0]}
    result = {
        "machine": machine(),
        "versions": versions(),
        "pairs": size * asked.blocks // 2,
        "separate_questions": few * asked.blocks,
        "tokens_per_question": sum(map(len, prompts)) / len(prompts),
        "threads": asked.threads,
        "medians": found,
        "blocks": rows,
        "largest_difference": difference,
    }
    ratios = sorted(row["speedup"] for row in rows)
    print(
        f"{size * asked.blocks} questions of {result['tokens_per_question']:.0f} tokens in {len(rows)} blocks: "
        f"{found['shared'] * 1e3:.0f} ms each shared, {found['separate'] * 1e3:.0f} ms one by one, "
        f"{found['speedup']:.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f}; {found['speedup_cpu']:.2f} in "
        f"processor time), largest difference {difference:.1e}"
    )
    if asked.out is not None:
        write_json(asked.out, result)
    return 0 if difference < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
