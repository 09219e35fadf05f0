"""Blind reading on prompts of your own: ``python -m benchmarks.reading RUN:base RUN:sft RUN --out reading``.

Every model answers every prompt of a file. ``reading/packet.txt`` shows the answers to a prompt in random order as A,
B, C …, and ``reading/key.json`` says which model each letter is. A reader writes one line for each prompt into a file::

    {"n": 1, "ranking": [["B"], ["A", "C"]], "ok": ["A", "B"], "copies": []}

``ranking`` has groups of letters, best first, ties in one group; ``ok`` names the answers that are true, sensible and
of the form that was asked for; ``copies`` those that repeat the prompt. Then
``python -m benchmarks.reading --tally reading FILE…`` prints who won. ``trimtab eval RECIPE --blind`` does the same for
two models on the recipe's own held-out prompts, and puts the result into the report.
"""

import argparse
import json
import random
import string
import sys
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

from trimtab.errors import DataError, TrimtabError
from trimtab.feedback.intervals import wilson_interval
from trimtab.files import write_json
from trimtab.pipeline.suites import open_target
from trimtab.records import Prompt, load
from trimtab.rollout import LocalSampler, SamplerConfig

PROMPTS = Path(__file__).parents[1] / "recipes" / "data" / "headlines-reading.jsonl"


def answers_of(target: str, prompts: Sequence[Prompt], sampling: SamplerConfig, seed: int) -> list[str]:
    """One answer of a model to each prompt."""
    role = open_target(target, runs=Path("runs"))
    rollouts = LocalSampler(role.backbone, sampling).generate(prompts, adapter=role.adapter, seed=seed)
    return [rollout.text for rollout in rollouts]


def packet(prompts: Sequence[Prompt], answers: Mapping[str, Sequence[str]], seed: int) -> tuple[str, list[list[str]]]:
    """The text for the reader, and for each prompt the models in the order of their letters."""
    draw, lines, key = random.Random(seed), [], []
    for i, prompt in enumerate(prompts):
        models = list(answers)
        draw.shuffle(models)
        key.append(models)
        lines += [f"### {i + 1}", prompt.text]
        for letter, model in zip(string.ascii_uppercase, models, strict=False):
            lines.append(f"  {letter}. {' / '.join(answers[model][i].splitlines()) or '(empty)'}")
        lines.append("")
    return "\n".join(lines), key


def tally(key: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of the result: how many answers of each model are ok or copies, and its wins (a tie counts half).

    Raises:
        DataError: a prompt is missing or judged twice, or a ranking does not name every letter once.
    """
    if sorted(row["n"] for row in rows) != list(range(1, len(key) + 1)):
        raise DataError(f"{len(rows)} judgements of {len(key)} prompts: expected one for each n from 1 to {len(key)}")
    models = sorted(key[0])
    wins = {pair: 0.0 for pair in permutations(models, 2)}
    counts: dict[str, dict[str, int]] = {what: dict.fromkeys(models, 0) for what in ("ok", "copies")}
    for row in rows:
        names = dict(zip(string.ascii_uppercase, key[int(row["n"]) - 1], strict=False))
        places = {names[letter]: place for place, group in enumerate(row["ranking"]) for letter in group}
        if sorted(letter for group in row["ranking"] for letter in group) != sorted(names):
            raise DataError(
                f"prompt {row['n']}: the ranking {row['ranking']} does not name each of {sorted(names)} once"
            )
        for a, b in wins:
            wins[a, b] += 0.5 + 0.5 * ((places[a] < places[b]) - (places[a] > places[b]))
        for what, count in counts.items():
            for letter in row.get(what, []):
                count[names[letter]] += 1
    total = len(rows)
    lines = [f"{m}: {counts['ok'][m]} of {total} ok, {counts['copies'][m]} copies" for m in models]
    for a, b in wins:
        low, high = wilson_interval(wins[a, b], total)
        lines.append(f"{a} over {b}: {wins[a, b] / total:.0%} [{low:.0%}, {high:.0%}]")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Write a packet, or count its readings; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="models, as of trimtab eval; with --tally: files of judgements")
    parser.add_argument("--out", type=Path, default=Path("reading"), help="folder of the packet")
    parser.add_argument("--tally", type=Path, metavar="FOLDER", help="count judgements of this folder's packet")
    parser.add_argument("--prompts", type=Path, default=PROMPTS)
    parser.add_argument("--temperature", type=float, default=0.9)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        if options.tally:
            key = json.loads((options.tally / "key.json").read_text())
            for file in options.targets:
                lines = Path(file).read_text().splitlines()
                print(file, *tally(key, [json.loads(line) for line in lines if line.strip()]), sep="\n")
            return 0
        prompts = load(options.prompts, kind=Prompt).records
        sampling = SamplerConfig(temperature=options.temperature, max_new_tokens=options.max_new_tokens)
        answers = {t: answers_of(t, prompts, sampling, options.seed) for t in options.targets}
        text, key = packet(prompts, answers, options.seed)
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "packet.txt").write_text(text)
        write_json(options.out / "key.json", key)
    except TrimtabError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
