"""How many labels of people an AI judge saves at equal error: ``python -m benchmarks.hybrid_savings``.

Data: LLMFAO's crowd votes on answers to a few prompts, and the GPT-4 and GPT-3.5 votes that come with it. For each
worker who chose a winner, the net vote of the others on that item is the reference, and worker and AI are both scored
against it (½ where the others are even, or the AI ties). The judges gave one letter and no confidence, so confidence is
the distance of their mean vote from one half. The most confident items go to the AI first. How many is chosen on all
prompts but one and applied to that one, in turns; ``saved`` is the share the AI labels there and ``beyond`` how much
the error of all labels then exceeds one worker's. The control arm gives the AI items drawn at random, its share chosen
in the same way. Intervals: bootstrap over prompts of the whole procedure, 95 %; with so few prompts they are rough.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from benchmarks.judge_agreement import llmfao
from trimtab.feedback import RouteConfig, label_hybrid, routing_lines
from trimtab.feedback.votes import first_better, leave_one_out, pair_votes, usable_judgements
from trimtab.files import write_json
from trimtab.pipeline.ai_labels import FilePeople, people_only
from trimtab.pipeline.judging import plain
from trimtab.records import Judgement

MARGINS = (0.0, 0.01, 0.02, 0.05)
"""How much more error than people's is allowed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/pairwise"))
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("runs/hybrid-savings.json"))
    options = parser.parse_args(arguments)
    items, crowd, given = llmfao(options.data / "llmfao")
    usable, _ = usable_judgements(items, crowd)
    prompts = {i.id: i.prompt.id for i in items}
    workers = {item: outcome for item, _, _, outcome in pair_votes(usable)}
    votes = {name: {j.item: first_better(j) for j in outcome} for name, outcome in given.items()}
    arms = {
        "gpt4": {i.id: votes["gpt4-judge"][i.id] for i in items},
        "gpt4 and gpt3.5": {i.id: (votes["gpt4-judge"][i.id] + votes["gpt3-judge"][i.id]) / 2 for i in items},
    }
    result: dict[str, Any] = {"prompts": len(set(prompts.values())), "arms": {}}
    for arm, annotations in arms.items():
        ai, human = errors(workers, annotations)
        result |= {"items": len(human), "one_worker_error": fmean(human.values())}
        confidence = {n: abs(annotations[n] - 0.5) for n in human}
        rows = savings(ai, human, confidence, prompts, resamples=options.resamples)
        result["arms"][arm] = {"error_of_ai": fmean(ai.values()), "rows": rows}
        print(f"{arm}: error {fmean(ai.values()):.3f}, one worker {fmean(human.values()):.3f}, {len(human)} items")
        for row in rows:
            print(
                " ", {k: tuple(round(x, 3) for x in v) if isinstance(v, tuple) else round(v, 3) for k, v in row.items()}
            )
    mean = [
        Judgement(
            id=f"both-{i.id}", item=i.id, annotator="gpt4+gpt3.5", source="ai", shown_order=(0, 1),
            probability=arms["gpt4 and gpt3.5"][i.id], ranks=(0, 1),
        )
        for i in items
    ]  # fmt: skip
    order = list(items)
    Random(0).shuffle(order)
    for error in (0.2, 0.3, 0.35, 0.4):
        config = RouteConfig(error=error, audit=0.3, calibration="isotonic")
        outcome = label_hybrid(order, mean, FilePeople(people_only(order, crowd)[0]), config)
        result[f"router at {error}"] = plain(outcome.report)
        print(f"router, stated error {error:.0%}:", *routing_lines(outcome.report), sep="\n  ")
    write_json(options.out, result)
    return 0


def errors(
    workers: Mapping[str, Mapping[str, int]], ai: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """The AI's error and one worker's by item, both against the net vote of the other workers.

    Args:
        workers: 1, 0 (tie) or −1 by item and worker.
        ai: P(first better) by item.
    """
    machine, human = {}, {}
    for item, votes in workers.items():
        sided, total = leave_one_out(votes), sum(votes.values())
        if sided:
            human[item] = 1 - fmean(sided.values())
            machine[item] = fmean(
                0.5 if ai[item] == 0.5 or total == votes[w] else float((total - votes[w] > 0) != (ai[item] > 0.5))
                for w in sided
            )
    return machine, human


def savings(
    ai: Mapping[str, float],
    human: Mapping[str, float],
    confidence: Mapping[str, float],
    prompts: Mapping[str, str],
    *,
    resamples: int,
) -> list[dict[str, Any]]:
    """Labels saved at each margin, by confidence and at random, on prompts on which the share was not chosen."""
    groups: dict[str, list[str]] = {}
    for name in sorted(human):
        groups.setdefault(prompts[name], []).append(name)
    pool, rng = sorted(groups), Random(0)
    whole = _held_out(pool, groups, ai, human, confidence)
    samples = [_held_out(rng.choices(pool, k=len(pool)), groups, ai, human, confidence) for _ in range(resamples)]
    rows = []
    for place, margin in enumerate(MARGINS):
        row: dict[str, Any] = {"margin": margin, **whole[place]}
        for key in whole[place] if samples else ():
            values = sorted(s[place][key] for s in samples if s)
            row[f"{key}_interval"] = (
                values[int(0.025 * (len(values) - 1))],
                values[math.ceil(0.975 * (len(values) - 1))],
            )
        rows.append(row)
    return rows


def _held_out(
    drawn: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    ai: Mapping[str, float],
    human: Mapping[str, float],
    confidence: Mapping[str, float],
) -> list[dict[str, float]]:
    """For each margin, what came of shares chosen without the prompt they are applied to; empty for a single prompt."""
    if len(set(drawn)) < 2:
        return []
    totals = [dict.fromkeys(("saved", "beyond", "random", "random_beyond"), 0.0) for _ in MARGINS]
    size = sum(len(groups[g]) for g in drawn)

    def curve(parts: Sequence[str]) -> list[tuple[float, float]]:
        keys = {f"{n}#{k}": n for k, g in enumerate(parts) for n in groups[g]}
        return savings_curve(*({k: table[n] for k, n in keys.items()} for table in (ai, human, confidence)))

    for held in set(drawn):
        chosen, test = curve([g for g in drawn if g != held]), curve([held])
        weight = drawn.count(held) * len(groups[held]) / size
        for margin, total in zip(MARGINS, totals, strict=True):
            share, chance = (f(chosen, chosen[0][1] + margin) for f in (saved_at, saved_at_random))
            total["saved"] += weight * share
            total["beyond"] += weight * (test[round(share * len(groups[held]))][1] - test[0][1])
            total["random"] += weight * chance
            total["random_beyond"] += weight * chance * (test[-1][1] - test[0][1])
    for total in totals:
        total["difference"] = total["saved"] - total["random"]
    return totals


def savings_curve(
    ai_error: Mapping[str, float], human_error: Mapping[str, float], confidence: Mapping[str, float], *, seed: int = 0
) -> list[tuple[float, float]]:
    """Error of hybrid labels as the AI labels more and more items, the most confident first.

    Args:
        ai_error: chance that the AI's label is wrong, by item; against the same references as people's.
        human_error: chance that one person's label is wrong, by item.
        confidence: by item; larger goes to the AI first.
        seed: of the random order of items with equal confidence.

    Returns:
        (share of items the AI labels, mean error of all labels) for 0 to all items.
    """
    names = sorted(ai_error)
    Random(seed).shuffle(names)
    names.sort(key=lambda n: -confidence[n])
    total = math.fsum(human_error[n] for n in names)
    curve = [(0.0, total / len(names))]
    for count, n in enumerate(names, 1):
        total += ai_error[n] - human_error[n]
        curve.append((count / len(names), total / len(names)))
    return curve


def saved_at(curve: Sequence[tuple[float, float]], error: float) -> float:
    """The largest share of labels the AI can give with the mean error at or below a stated one."""
    return max((share for share, e in curve if e <= error + 1e-12), default=0.0)


def saved_at_random(curve: Sequence[tuple[float, float]], error: float) -> float:
    """The same where the AI labels items drawn at random: the mean error then moves along a straight line."""
    start, end = curve[0][1], curve[-1][1]
    if end <= error:
        return 1.0
    return max(0.0, (error - start) / (end - start)) if start < end else 0.0


if __name__ == "__main__":
    sys.exit(main())
