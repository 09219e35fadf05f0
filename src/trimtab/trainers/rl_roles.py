"""The models of an online run: policy, reference and, for PPO, critic."""

from dataclasses import dataclass

from trimtab.models import AdapterConfig, Backbone, Role
from trimtab.trainers.checkpoint import step_seed


@dataclass(frozen=True, kw_only=True, slots=True)
class RlRoles:
    """The models an online run needs."""

    policy: Role
    """Trained."""
    reference: Role
    """Frozen; what KL is measured against."""
    critic: Role | None = None
    """Trained, with a scalar head. Only PPO has one."""

    @classmethod
    def on(
        cls,
        backbone: Backbone,
        config: AdapterConfig,
        *,
        seed: int,
        critic: bool = True,
        shared_critic: bool = False,
    ) -> "RlRoles":
        """Policy and critic as adapters (or full copies) of one backbone, which stays the reference.

        ``shared_critic``: the critic is a head on the policy's own states instead.
        """
        policy = Role.trainable(backbone, "policy", config, seed=step_seed(seed, "policy", 0))
        values = None
        if critic:
            values = critic_of(policy, backbone, config, seed=step_seed(seed, "critic", 0), shared=shared_critic)
        return cls(policy=policy, reference=Role(backbone), critic=values)


def critic_of(policy: Role, backbone: Backbone, config: AdapterConfig, *, seed: int, shared: bool) -> Role:
    """A critic with a zero head: on ``backbone`` with its own weights, or with ``shared`` on the policy's states."""
    if shared:
        return policy.with_head()
    return Role.trainable(backbone, "critic", config, seed=seed, scalar_head=True)
