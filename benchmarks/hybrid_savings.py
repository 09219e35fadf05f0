"""How many labels of people an AI judge saves at equal error: ``python -m benchmarks.hybrid_savings``.

Data: LLMFAO's crowd votes and the GPT-4 and GPT-3.5 votes that come with it. Truth is the crowd's net vote. A
person's error is that of one worker against the net vote of the others (½ where those are even). The
judges gave one letter and no confidence, so the confidence is made of both: the mean of their votes, calibrated
against the crowd (isotonic, cross-fitted by prompt). The most confident items go to the AI first; the control
arm gives it the same number of items drawn at random. Intervals: bootstrap over prompts, 95 %.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from benchmarks.judge_agreement import llmfao
from trimtab.feedback import RouteConfig, cross_fitted, label_hybrid, routing_lines
from trimtab.feedback.routing import first_better, saved_at, saved_at_random, savings_curve
from trimtab.feedback.votes import leave_one_out, pair_votes, usable_judgements
from trimtab.files import write_json
from trimtab.pipeline.ai_labels import FilePeople
from trimtab.pipeline.judging import plain
from trimtab.records import Judgement

MARGINS = (0.0, 0.01, 0.02, 0.05)
"""How much more error than people's is allowed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/pairwise"))
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("runs/hybrid-savings.json"))
    options = parser.parse_args(arguments)
    items, crowd, given = llmfao(options.data / "llmfao")
    usable, _ = usable_judgements(items, crowd)
    prompts = {i.id: i.prompt.id for i in items}
    truth, human = {}, {}
    for item, _, _, votes in pair_votes(usable):
        net = sum(votes.values())
        sided = leave_one_out(votes)
        if net and sided:
            truth[item] = float(net > 0)
            human[item] = 1 - fmean(sided.values())
    votes = {name: {j.item: first_better(j) for j in found} for name, found in given.items()}
    arms = {
        "gpt4": {i: votes["gpt4-judge"][i] for i in truth},
        "gpt4 and gpt3.5": {i: (votes["gpt4-judge"][i] + votes["gpt3-judge"][i]) / 2 for i in truth},
    }
    names = sorted(truth)
    result: dict[str, Any] = {"items": len(names), "one_worker_error": fmean(human[n] for n in names), "arms": {}}
    for arm, said in arms.items():
        p = cross_fitted("isotonic", [said[n] for n in names], [truth[n] for n in names], [prompts[n] for n in names])
        ai = dict(zip(names, p, strict=True))
        result["arms"][arm] = savings(names, truth, ai, human, prompts, options.resamples)
        for row in result["arms"][arm]:
            print(arm, {k: v if not isinstance(v, float) else round(v, 3) for k, v in row.items()})
    mean = [
        Judgement(
            id=f"both-{i.id}", item=i.id, annotator="gpt4+gpt3.5", source="ai", shown_order=(0, 1),
            probability=(votes["gpt4-judge"][i.id] + votes["gpt3-judge"][i.id]) / 2, ranks=(0, 1),
        )
        for i in items
    ]  # fmt: skip
    order = list(items)
    Random(0).shuffle(order)
    for error in (0.2, 0.3, 0.35, 0.4):
        config = RouteConfig(error=error, audit=0.3, calibration="isotonic")
        found = label_hybrid(order, mean, FilePeople(crowd), config)
        result[f"router at {error}"] = plain(found.report)
        print(f"router, stated error {error:.0%}:", *routing_lines(found.report), sep="\n  ")
    write_json(options.out, result)
    return 0


def savings(
    names: Sequence[str],
    truth: dict[str, float],
    ai: dict[str, float],
    human: dict[str, float],
    prompts: dict[str, str],
    resamples: int,
) -> list[dict[str, Any]]:
    """Labels saved at each margin by confidence and at random, with intervals."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(prompts[name], []).append(name)
    pool, rng = list(groups.values()), Random(0)

    def measured(drawn: Sequence[str]) -> list[tuple[float, float]]:
        keys = {f"{n}#{k}": n for k, n in enumerate(drawn)}
        curve = savings_curve(
            {k: truth[n] for k, n in keys.items()},
            {k: ai[n] for k, n in keys.items()},
            {k: human[n] for k, n in keys.items()},
            {k: abs(ai[n] - 0.5) for k, n in keys.items()},
        )
        return [(saved_at(curve, curve[0][1] + m), saved_at_random(curve, curve[0][1] + m)) for m in MARGINS]

    whole = measured(names)
    samples = [measured([n for g in rng.choices(pool, k=len(pool)) for n in g]) for _ in range(resamples)]
    rows = []
    for place, margin in enumerate(MARGINS):

        def ends(values: list[float]) -> tuple[float, float]:
            values.sort()
            return values[int(0.025 * (len(values) - 1))], values[math.ceil(0.975 * (len(values) - 1))]

        by, control = whole[place]
        rows.append(
            {
                "margin": margin,
                "saved": by,
                "saved_interval": ends([s[place][0] for s in samples]),
                "random": control,
                "random_interval": ends([s[place][1] for s in samples]),
                "difference_interval": ends([s[place][0] - s[place][1] for s in samples]),
            }
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
