"""Reward models of a language model on people's preferences: ``python -m benchmarks.language_rewards [hh|ukp]``.

Five folds, each scored by a model that was trained on the other four: ``hh`` is hh-harmless-base, its folds are by
first human turn; ``ukp`` is UKPConvArg1's net votes, its folds are by topic, both sides together. Every usable pair is
scored. The frozen layers run once for all folds and seeds. Baselines are measured on the same pairs, and so is the mean
of the language model's scores and the bag of words', each divided by the deviation of its differences.

Texts are not printed. Results are written after each seed.
"""

import argparse
import gzip
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.machine import machine, versions
from trimtab import fast_cpu
from trimtab.evals import evaluate_reward_model
from trimtab.evals.baselines import baseline_scores
from trimtab.files import write_json
from trimtab.models import AdapterConfig, Backbone, ModelConfig, Role
from trimtab.records import Completion, Preference, Prompt, load
from trimtab.trainers import RewardConfig, encode_preferences, score_rankings, train_reward
from trimtab.trainers.reward import prepared_states

FOLDS = 5
Scores = list[list[float]]


def hh(folder: Path) -> list[Preference]:
    """Pairs of hh-harmless-base; the prompt's id is the first human turn."""
    records = load(str(folder / "hh-harmless-base.jsonl.gz"), kind=Preference).records
    return [
        p.model_copy(update={"prompt": p.prompt.model_copy(update={"id": p.prompt.messages[0].content})})
        for p in records
        if len(set(p.ranks)) > 1
    ]


def ukp(folder: Path) -> list[Preference]:
    """Pairs of arguments with a net winner; the prompt is the topic and a side of it, its id the topic."""
    with gzip.open(folder / "ukpconvarg1.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    pairs = []
    for row in rows:
        values = [a["value"] for a in row["annotations"]]
        net = values.count("a1") - values.count("a2")
        if net and row["a1"] != row["a2"]:
            prompt = Prompt.from_text(f"Debate: {row['title']}. Give an argument for this side: {row['stance']}.")
            prompt = prompt.model_copy(update={"id": row["title"]})
            answers = (Completion(text=row["a1"]), Completion(text=row["a2"]))
            ranks = (0, 1) if net > 0 else (1, 0)
            pairs.append(Preference(id=row["id"], prompt=prompt, completions=answers, ranks=ranks))
    return pairs


def fold_of(names: Sequence[str]) -> list[int]:
    """Fold of each pair; pairs of one name share it."""
    unique = sorted(set(names))
    random.Random(0).shuffle(unique)
    place = {name: number % FOLDS for number, name in enumerate(unique)}
    return [place[name] for name in names]


def together(one: Scores, other: Scores) -> Scores:
    """Mean of two models' scores, each over the deviation of its differences within a pair."""
    parts = [np.array(scores) / np.diff(np.array(scores), axis=1).std() for scores in (one, other)]
    return ((parts[0] + parts[1]) / 2).tolist()


def facts_of(preferences: Sequence[Preference], scores: Scores, baselines: dict[str, Scores] | None) -> dict[str, Any]:
    """Accuracy, calibration and, with baselines, the gain over each: value, lower and upper end."""
    result = evaluate_reward_model(preferences, scores, baselines=baselines)
    return {
        "accuracy": [result.accuracy.value, result.accuracy.low, result.accuracy.high],
        "log-loss": result.log_loss,
        "ece": result.ece,
        "ece after temperature": result.calibrated_ece,
        "gain": {b.name: [b.gain.value, b.gain.low, b.gain.high] for b in result.baselines},
        "baselines": {b.name: [b.accuracy.value, b.accuracy.low, b.accuracy.high] for b in result.baselines},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a line for each fold, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["hh", "ukp"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/pairwise"))
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--context", type=int, default=512, help="longer pairs are left out, and counted")
    parser.add_argument("--layers", type=int, default=4, help="upper layers that get adapters")
    parser.add_argument("--lr", type=float, default=None, help="the default of reward models if left out")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--limit", type=int, default=None, help="pairs, drawn at random; all by default")
    parser.add_argument("--json", type=Path, default=Path("runs/language_rewards.json"))
    options = parser.parse_args(arguments)
    fast_cpu.install()
    preferences = {"hh": hh, "ukp": ukp}[options.what](options.data)
    if options.limit is not None:
        preferences = random.Random(0).sample(preferences, min(options.limit, len(preferences)))
    backbone = Backbone.load(ModelConfig(name=options.model, context=options.context))
    rankings, used, left_out = encode_preferences(backbone.chat, preferences)
    adapter = AdapterConfig(kind="lora", top_layers=options.layers)
    config = RewardConfig.model_validate(
        {"adapter": adapter, "epochs": options.epochs, "head_init": "probe", "cache_mb": 8000.0}
        | ({} if options.lr is None else {"optimizer": {"lr": options.lr}})
    )
    fold = fold_of([p.prompt.id for p in used])
    start = time.perf_counter()
    roles = {  # all before the states: a new adapter on the trunk empties them
        (seed, number): Role.trainable(backbone, f"reward-{seed}-{number}", adapter, seed=seed, scalar_head=True)
        for seed in range(options.seeds)
        for number in range(FOLDS)
    }
    states = prepared_states(
        roles[0, 0],
        rankings,
        passes=2.0,
        cache_mb=config.cache_mb,
        micro_batch_tokens=config.micro_batch_tokens,
    )
    print(f"{len(used)} pairs ({left_out}), frozen layers: {time.perf_counter() - start:.0f} s", flush=True)
    simple = baseline_scores(used)
    settings = {
        name: getattr(options, name) for name in ("what", "model", "context", "layers", "lr", "epochs", "limit")
    }
    report: dict[str, Any] = {"machine": machine(), "versions": versions(), "settings": settings, "pairs": len(used)}
    report |= {"left out": left_out, "seeds": []}
    for seed in range(options.seeds):
        scores: Scores = [[] for _ in used]
        for number in range(FOLDS):
            start = time.perf_counter()
            train, test = ([i for i, f in enumerate(fold) if (f == number) is held] for held in (False, True))
            role = roles[seed, number]
            train_reward(role, [rankings[i] for i in train], config, seed=seed, states=states)
            for i, row in zip(test, score_rankings(role, [rankings[i] for i in test], states=states), strict=True):
                scores[i] = row
            right = fmean(float((scores[i][0] > scores[i][1]) == (used[i].ranks[0] < used[i].ranks[1])) for i in test)
            print(f"seed {seed}, fold {number}: {right:.1%}, {time.perf_counter() - start:.0f} s", flush=True)
        mixed = facts_of(used, together(scores, simple["words"]), simple)
        mixed = {
            name: mixed[name] for name in ("accuracy", "ece after temperature", "gain")
        }  # its scores have no scale
        report["seeds"].append({"language model": facts_of(used, scores, simple), "with the bag of words": mixed})
        write_json(options.json, report)
    print(json.dumps(report["seeds"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
