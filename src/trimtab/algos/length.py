"""Correlation of rewards with the length of answers, and its slope.

Shapes: B answers, each to one of several prompts.
"""

import torch

from trimtab.algos.checks import full, same_shape
from trimtab.algos.shapes import TensorB


def length_correlation(scores: TensorB, lengths: TensorB, prompts: TensorB) -> tuple[float, TensorB]:
    """Pearson's correlation of scores and lengths among the answers to one prompt, and its slope.

    ρ = Σ s̃ ñ / √(Σ s̃² Σ ñ²), s̃ and ñ minus their mean over the prompt's answers; ∂ρ/∂s_i = ñ_i / √(Σ s̃² Σ ñ²) −
    ρ s̃_i / Σ s̃². Source: Chen et al. 2024 (ODIN, arXiv 2402.07319), section 3, whose correlation is over all answers
    of a batch. Within prompts, the correlation ignores that some prompts ask for long answers.

    The slope's product with the scores is 0, because ρ does not depend on their scale.

    Args:
        scores: ``[B]``.
        lengths: ``[B]``, in any unit.
        prompts: ``[B]`` int64, number of each answer's prompt, from 0.

    Returns:
        ρ, and ``[B]``; both 0 where all scores or all lengths of a prompt's answers are equal.

    Raises:
        TrainingError: the shapes differ.

    >>> scores, lengths = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 5.0, 9.0])
    >>> rho, slope = length_correlation(scores, lengths, torch.tensor([0, 0, 1]))
    >>> round(rho, 6), slope.tolist()
    (1.0, [0.0, 0.0, 0.0])
    """
    same_shape(scores=scores, lengths=lengths, prompts=prompts)
    s, n = _centred(full(scores).double(), prompts), _centred(full(lengths).double(), prompts)
    score_squares, length_squares = s.square().sum(), n.square().sum()
    scale = (score_squares * length_squares).sqrt()
    if float(scale) < 1e-9:
        return 0.0, torch.zeros_like(full(scores))
    rho = (s * n).sum() / scale
    return float(rho), (n / scale - rho * s / score_squares).to(full(scores).dtype)


def _centred(values: TensorB, prompts: TensorB) -> TensorB:
    count = int(prompts.max()) + 1 if len(prompts) else 0
    sums = values.new_zeros(count).index_add(0, prompts, values)
    sizes = values.new_zeros(count).index_add(0, prompts, torch.ones_like(values))
    return values - (sums / sizes.clamp(min=1))[prompts]
