"""Every number that trimtab logs or shows: meaning, unit, good range, and what to do outside it.

One table for the documentation, the live line of a run, the charts of the report and a test that trains
tiny models and fails when a logged key has no entry. Ranges are rules of thumb for language models, not limits.
"""

from collections.abc import Mapping

from trimtab.metrics.entry import Metric
from trimtab.metrics.guards import GUARDS
from trimtab.metrics.labels import AGREEMENT, ANNOTATION, BALANCE, JUDGES
from trimtab.metrics.results import CAPABILITY, EVALUATION, PROBES, REWARD_MODEL, SUITES, TUNING
from trimtab.metrics.training import TRAINING

__all__ = [
    "AGREEMENT",
    "ANNOTATION",
    "BALANCE",
    "CAPABILITY",
    "EVALUATION",
    "GROUPS",
    "GUARDS",
    "JUDGES",
    "PROBES",
    "REWARD_MODEL",
    "SUITES",
    "TRAINING",
    "TUNING",
    "Metric",
    "live_line",
    "training_metric",
]

GROUPS: Mapping[str, tuple[str, Mapping[str, Metric]]] = {
    "Training": ("Keys of `stages/*/metrics.jsonl` and of TensorBoard.", TRAINING),
    "Evaluation": ("The report's headline and tiles, and `evaluation.json`.", EVALUATION),
    "Reward model": ("The report's section *Reward model*, and `reward.json`.", REWARD_MODEL),
    "Text probes": ("The report's section *What changed in the text*. None of these is a verdict.", PROBES),
    "Capability": ("The report's section *What alignment cost*, and `capability.json`.", CAPABILITY),
    "Suites": ("`trimtab eval --suite`, its page, and `suites.json`.", SUITES),
    "Agreement": ("The report, `trimtab agreement`, the dashboard, and `agreement.json`.", AGREEMENT),
    "AI judges": ("`trimtab judge`, `trimtab route`, and `judge.json`.", JUDGES),
    "Balance": ("Constitutional runs, and `balance.json`.", BALANCE),
    "Live tuning": ("The page of `trimtab tune`, and `predicted.json` of a round.", TUNING),
    "Guards": ("`trimtab guard`, and `report.json` in the guard's folder.", GUARDS),
    "Annotation": ("The annotation app's dashboard.", ANNOTATION),
}
"""All tables by title, each with where its numbers appear."""


def training_metric(key: str) -> Metric | None:
    """The entry of a key of ``metrics.jsonl``; None if it has none.

    >>> training_metric("reward/short").title, training_metric("seconds/update").unit
    ('Reward component', 'seconds')
    """
    for prefix, general in (("reward/", "reward/NAME"), ("probe/", "probe/NAME"), ("seconds/", "seconds/PHASE")):
        if key.startswith(prefix):
            return TRAINING[general]
    return TRAINING.get(key)


def live_line(metrics: Mapping[str, float]) -> str:
    """The numbers shown beside the progress bar, in the order of :data:`TRAINING`.

    >>> live_line({"loss": 0.5, "accuracy": 0.75, "lr": 1e-4})
    'loss 0.500 · accuracy 75%'
    """
    return " · ".join(m.live.format(metrics[key]) for key, m in TRAINING.items() if m.live and key in metrics)
