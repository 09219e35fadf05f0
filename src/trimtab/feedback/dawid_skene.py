"""True labels and annotators' confusion matrices from labels that disagree.

Dawid and Skene, "Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm", Applied Statistics 28
(1979), 20–28. This module imports NumPy, so it is imported where it is used and not with the package.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.errors import ConfigError
from trimtab.feedback.comparison_model import Floats, Ints

SHRINKAGE = 4.0
"""Number of typical labels added to the labels of each annotator."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DawidSkene:
    """Result for T tasks, A annotators and C classes."""

    probability: Floats
    """``[T, C]``, P(the task's true class is c)."""
    prior: Floats
    """``[C]``, share of each class."""
    confusion: Floats
    """``[A, C, C]``, P(the annotator says c′ | the truth is c)."""
    counts: Floats
    """``[A, C]``, expected number of the annotator's labels on tasks of each true class."""

    @property
    def accuracy(self) -> Floats:
        """``[A]``, Σ_c prior_c · confusion_cc: how often an annotator names the true class."""
        return np.einsum("c,acc->a", self.prior, self.confusion)


def dawid_skene(
    task: Ints,
    annotator: Ints,
    label: Ints,
    *,
    classes: int,
    weight: Floats | None = None,
    shrinkage: float = SHRINKAGE,
    iterations: int = 500,
    tolerance: float = 1e-7,
) -> DawidSkene:
    """Estimate true classes by expectation maximisation, from each task's shares of labels.

    π_ac′|c = (n_acc′ + s·π̄_c′|c) / (n_ac + s), where π̄ is the confusion matrix of all annotators together: annotators
    with few labels are treated as typical. ``shrinkage`` s = 0 is the published maximum likelihood.

    Args:
        task: ``[N]``, 0 … T − 1; each must occur.
        annotator: ``[N]``, 0 … A − 1; each must occur.
        label: ``[N]``, 0 … C − 1.
        classes: C.
        weight: ``[N]``, number of labels that each counts for; None: 1.
        shrinkage: s, in labels.
        iterations: largest number of EM rounds.
        tolerance: EM ends when all probabilities change by less.

    Raises:
        ConfigError: there are no labels.
    """
    if not len(task):
        raise ConfigError("there is no label to fit; pass one at least")
    tasks, annotators = int(task.max()) + 1, int(annotator.max()) + 1
    weight = np.ones(len(task)) if weight is None else weight
    labels = np.zeros((tasks, classes))
    np.add.at(labels, (task, label), weight)
    posterior = labels / labels.sum(1, keepdims=True)
    by_label: Any = (annotator, slice(None), label)
    tiny = 1e-12
    prior, confusion = np.zeros(classes), np.zeros((annotators, classes, classes))
    counts = np.zeros((annotators, classes, classes))
    for _ in range(iterations):
        counts[:] = 0
        # counts[a, c, c'] += P(truth c) for each label c' by a
        np.add.at(counts, by_label, posterior[task] * weight[:, None])
        pooled = counts.sum(0) + tiny
        pooled /= pooled.sum(1, keepdims=True)
        confusion = (counts + shrinkage * pooled + tiny) / (counts.sum(2, keepdims=True) + shrinkage + classes * tiny)
        prior = posterior.mean(0)
        logs = np.log(confusion[annotator, :, label]) * weight[:, None]
        log_posterior = np.stack(
            [np.bincount(task, weights=logs[:, c], minlength=tasks) for c in range(classes)], axis=1
        )
        log_posterior += np.log(prior + tiny)
        log_posterior -= log_posterior.max(1, keepdims=True)
        new_posterior = np.exp(log_posterior)
        new_posterior /= new_posterior.sum(1, keepdims=True)
        change = float(np.abs(new_posterior - posterior).max())
        posterior = new_posterior
        if change < tolerance:
            break
    return DawidSkene(probability=posterior, prior=prior, confusion=confusion, counts=counts.sum(2))
