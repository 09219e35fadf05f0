"""The inputs that the loss of a pair of answers may use."""

from dataclasses import dataclass

from torch import Tensor

from trimtab.algos import answer_nll


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Pairs of answers with their log-probabilities. Legend: P pairs.

    ``chosen`` is the better answer (with a soft label, the first), ``rejected`` the other one. Log-probabilities are
    summed over response tokens, in nats.
    """

    chosen: Tensor
    """``[P]``, under the policy."""
    rejected: Tensor
    """``[P]``, under the policy."""
    ref_chosen: Tensor
    """``[P]``, under the reference; 0 for methods without one."""
    ref_rejected: Tensor
    """``[P]``, under the reference; 0 for methods without one."""
    chosen_lengths: Tensor
    """``[P]``, response tokens."""
    rejected_lengths: Tensor
    """``[P]``, response tokens."""
    mean_chosen_length: float
    """Response tokens of the better answer, averaged over the pairs of the whole optimiser step with their weights."""
    probability: Tensor
    """``[P]``, P(chosen is better)."""
    certain: bool
    """True: all probabilities are 1."""
    mean_ratio: Tensor
    """A scalar, nats: ½·(log π/ref of the better answer + that of the other one), averaged over the pairs of the whole
    optimiser step with their weights, under the policy before the step; 0 for methods that do not use it. Constant."""

    @property
    def logprobs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``chosen``, ``rejected``, ``ref_chosen``, ``ref_rejected``."""
        return self.chosen, self.rejected, self.ref_chosen, self.ref_rejected

    @property
    def nll(self) -> Tensor:
        """``[P]``, negative log-likelihood of the better answer, nats per token."""
        return answer_nll(self.chosen, self.chosen_lengths)

    @property
    def lengths(self) -> dict[str, Tensor]:
        """``chosen_lengths`` and ``rejected_lengths``, as arguments for losses with averaged log-probabilities."""
        return {"chosen_lengths": self.chosen_lengths, "rejected_lengths": self.rejected_lengths}
