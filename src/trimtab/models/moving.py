"""A reference that follows the policy: ref ← α·θ + (1 − α)·ref, on the weights that the policy trains.

The sum of two low-rank adapters has a higher rank, so no adapter of the same rank can represent their mixture. Dense
weights mix exactly. So the reference has a dense copy of each weight that the policy changes (trunk plus adapter), and
computes on the shared trunk with these copies in place.
Source: Gorbatovski et al. 2024 (TR-DPO, arXiv 2404.09656), soft update; α = 1 is their hard update.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from trimtab.config import Config
from trimtab.errors import ConfigError, ModelError
from trimtab.models.adapting import adapted_weight
from trimtab.models.batch import Batch
from trimtab.models.frozen import FrozenStates
from trimtab.models.role import Role


class ReferenceUpdateConfig(Config):
    """A reference that follows the policy (TR-DPO): ref ← α·θ + (1 − α)·ref."""

    every: int = Field(ge=1)
    """τ: steps between two updates of the reference; rollout batches for an online method, optimiser steps for an
    offline one."""
    alpha: float = Field(default=1.0, gt=0.0, le=1.0)
    """α: share of the policy's weights in the new reference; 1 copies the policy (hard update), less mixes (soft)."""

    def due(self, step: int) -> bool:
        """True: the reference is updated after ``step`` finished steps."""
        return step % self.every == 0


def _wide(weight: Tensor) -> Tensor:
    """A copy, in float32 for 16-bit weights, so that small updates are not lost."""
    return weight.float() if weight.dtype in (torch.bfloat16, torch.float16) else weight.clone()


class MovingReference(Role):
    """The reference of a policy, with a copy of each weight that the policy changes. It starts equal to the trunk.

    Memory: 4 bytes for each weight of the adapted layers (biases and norms are not adapted), or for each weight of the
    model if the policy trains all of them.

    Args:
        reference: the trunk without an adapter.
        policy: an adapter on the same trunk, or a model of the same architecture whose weights are all trained.

    Raises:
        ConfigError: an adapted layer stores its weight in less than 16 bits, so it cannot be mixed.
    """

    def __init__(self, reference: Role, policy: Role) -> None:
        super().__init__(reference.backbone)
        self.policy = policy
        trunk = self._trunk()
        self._own: dict[str, Tensor] = {name: _wide(trunk[name].detach()) for name in self._weights()}
        coarse = [name for name, weight in self._own.items() if not weight.is_floating_point()]
        if coarse:
            raise ConfigError(
                f"reference_update mixes weights, and {coarse[0]} is stored as {self._own[coarse[0]].dtype}; load the "
                "model without quantisation, or leave reference_update out"
            )

    @torch.no_grad()
    def update(self, alpha: float) -> None:
        """Move the reference: ref ← α·θ + (1 − α)·ref.

        Args:
            alpha: α, in (0, 1]; 1 copies the policy's weights exactly.
        """
        with self.policy.gathered():
            for name, (base, module) in self._weights().items():
                trained = base if module is None else base + module.get_delta_weight(self.policy.adapter)
                self._own[name].lerp_(trained.to(self._own[name]), alpha)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Inside the context, the trunk without adapters computes with the reference's weights."""
        self.backbone.activate(None)
        with self.backbone.gathered():
            parameters = self._trunk()
            originals = {name: parameters[name].data for name in self._own}
            try:
                for name, weight in self._own.items():
                    parameters[name].data = weight
                yield
            finally:
                for name, weight in originals.items():
                    parameters[name].data = weight

    def state(self) -> dict[str, Tensor]:
        """A copy of the reference's weights, on the CPU."""
        return {name: weight.cpu().clone().contiguous() for name, weight in self._own.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Copy weights in.

        Raises:
            ModelError: names or shapes differ from this reference's.
        """
        shapes = {name: weight.shape for name, weight in self._own.items()}
        if shapes != {name: weight.shape for name, weight in state.items()}:
            odd = sorted(shapes.keys() ^ state.keys()) or ["a weight of another shape"]
            raise ModelError(f"weights of the reference do not fit: {odd[0]}; was the adapter section changed?")
        for name, weight in state.items():
            self._own[name].copy_(weight)

    # Computing ----------------------------------------------------------------------------

    def hidden(self, batch: Batch, *, states: FrozenStates | None = None) -> Tensor:
        """As :meth:`Role.hidden`. If all weights are trained, no layer is frozen and ``states`` are not used."""
        with self.computing():
            return super().hidden(batch, states=None if self.policy.full else states)

    def logprobs(self, batch: Batch, *, temperature: float = 1.0, states: FrozenStates | None = None) -> Tensor:
        """As :meth:`Role.logprobs`, without a gradient."""
        with torch.no_grad(), self.computing():
            return super().logprobs(batch, temperature=temperature, states=states)

    def _trunk(self) -> dict[str, Any]:
        return dict(self.backbone.model.named_parameters())

    def _weights(self) -> dict[str, tuple[Tensor, Any]]:
        """The weights that the policy changes, by name on the trunk: its base weight, and its adapted layer if any."""
        if self.policy.full:
            return {name: (weight, None) for name, weight in self.policy.backbone.model.named_parameters()}
        names = {id(parameter): name for name, parameter in self._trunk().items()}
        weights = [(adapted_weight(layer), layer) for layer in self.backbone.adapted(self.policy.adapter)]
        return {names[id(weight)]: (weight, layer) for weight, layer in weights}
