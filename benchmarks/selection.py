"""What choosing the weights of a run by a held-out reward model costs, beside other rules: regret in gold.

``python -m benchmarks.selection [SEEDS]`` prints a table. Each seed draws noisy comparisons of the reference's answers,
divides them into halves, fits a reward model to each, climbs one for 60 steps of RLOO without a KL penalty, and lets
each rule choose among the weights after 0, 1, … 60 steps. Regret is (best − chosen)/(best − start) in expected gold;
above 1, the chosen weights are worse than the start. Rules see what a run logs (means of 64 sampled answers); gold is
exact and no rule sees it.

In the last row the comparisons themselves have a flaw: half of what people prefer is certainty and padding. Both
halves learn it, so no split of the labels can show it.
"""

import sys
from collections.abc import Sequence

from benchmarks.hacking_task import CERTAIN, PADDING, STEPS, Trained, as_reward, counts, fitted_model, gold, train
from trimtab.feedback.intervals import bootstrap_interval
from trimtab.trainers import Selection

LABELS = {"noisy, 60 in each half": (60, False), "noisy, 150": (150, False), "noisy, 150, a shared flaw": (150, True)}
"""Comparisons in each half, and whether they have the flaw, by name of the row."""

BUDGET = 3.0
"""KL of the rule that stops at a fixed distance, nats per answer."""

RULES = ("last", "proxy", "kl", "heldout")


def choices(run: Trained) -> dict[str, int]:
    """The weights that each rule chooses, as finished steps."""
    chosen: dict[str, int] = {}
    for rule in RULES:
        selection = Selection(
            "heldout" if rule == "heldout" else "proxy" if rule == "proxy" else "last",
            budget=BUDGET if rule == "kl" else None,
        )
        for metrics in run.metrics:
            selection.add(metrics)
        chosen[rule] = selection.choose(range(STEPS + 1))
    return chosen


def regrets(run: Trained) -> dict[str, float]:
    """Regret of each rule."""
    best, first = max(run.gold), run.gold[0]
    return {rule: (best - run.gold[step]) / (best - first) for rule, step in choices(run).items()}


def simulate(seed: int, pairs: int, *, flawed: bool = False) -> Trained:
    """A run that climbs the reward model of one half; that of the other half watches."""
    taste = gold() + (0.8 * counts()[:, CERTAIN] + 0.8 * counts()[:, PADDING] if flawed else 0.0)
    proxy, judge = (fitted_model(taste, pairs, 2 * seed + half) for half in (0, 1))
    return train({"proxy": (proxy, as_reward())}, seed=seed, watched=judge)


def main(arguments: Sequence[str]) -> int:
    """Print the table."""
    seeds = int(arguments[0]) if arguments else 12
    print(f"{seeds} seeds, {STEPS} steps; mean regret in gold [95 %]")
    print("| labels | last | best by proxy | KL of 3 nats | best by held-out |\n|---|---|---|---|---|")
    for name, (pairs, flawed) in LABELS.items():
        runs = [simulate(seed, pairs, flawed=flawed) for seed in range(seeds)]
        rows = [regrets(run) for run in runs]
        cells = []
        for rule in RULES:
            values = [row[rule] for row in rows]
            low, high = bootstrap_interval(values)
            cells.append(f"{sum(values) / seeds:.2f} [{low:.2f}, {high:.2f}]")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        turned = sum(max(run.gold) - run.gold[-1] > 0.1 * (max(run.gold) - run.gold[0]) for run in runs)
        print(f"  gold fell by more than a tenth of its gain in {turned} of {seeds} runs", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
