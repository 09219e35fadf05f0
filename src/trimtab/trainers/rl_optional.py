"""Settings that only some online methods have; for the others, the value that switches the feature off.

The loop (:mod:`trimtab.trainers.rl`) reads settings through these functions, so its code is the same for every method.
"""

from trimtab.trainers.rl_config import (
    ConstraintConfig,
    DapoConfig,
    KLConfig,
    OnlineConfig,
    PolicyGradientConfig,
    PpoConfig,
    PtxConfig,
)


def kl_of(config: OnlineConfig) -> KLConfig:
    """The penalty for diverging from the reference; a coefficient of 0 for methods without one."""
    return config.kl if isinstance(config, PolicyGradientConfig) else KLConfig(coefficient=0.0, place="loss")


def constraint_of(config: OnlineConfig) -> ConstraintConfig | None:
    """The limit on a cost; None without one."""
    return config.constraint if isinstance(config, PolicyGradientConfig) else None


def ptx_of(config: OnlineConfig) -> PtxConfig | None:
    """The conversations of PPO-ptx; None without them."""
    return config.ptx if isinstance(config, PolicyGradientConfig) else None


def score_clip_of(config: OnlineConfig) -> float | None:
    """Scores are clipped to ± this value; None: not clipped."""
    return config.score_clip if isinstance(config, PolicyGradientConfig) else None


def entropy_share(config: OnlineConfig) -> float | None:
    """Share of the tokens that are trained on, those with the highest entropy; None: all."""
    return config.entropy_top if isinstance(config, PolicyGradientConfig) else None


def scales_scores(config: OnlineConfig) -> bool:
    """True: scores are divided by their running standard deviation since the start of the run."""
    return isinstance(config, PolicyGradientConfig) and config.running_scale


def leaves_out_cut(config: OnlineConfig) -> bool:
    """True: answers that were cut are left out of the loss."""
    return isinstance(config, PolicyGradientConfig) and config.overlong_filter


def draws_ahead(config: OnlineConfig) -> bool:
    """True: a step's answers come from the weights before the previous step's update."""
    return isinstance(config, PolicyGradientConfig) and config.one_step_off


def resample_attempts(config: OnlineConfig) -> int:
    """Number of attempts to replace groups whose answers all score the same; 0: they are not replaced."""
    return config.resample if isinstance(config, DapoConfig) else 0


def overlong_buffer(config: OnlineConfig) -> int | None:
    """Tokens before the limit over which the score falls; None: it does not fall."""
    return config.overlong_buffer if isinstance(config, DapoConfig) else None


def critic_on_policy(config: OnlineConfig) -> bool:
    """True: the critic is a head on the policy's own hidden states."""
    return isinstance(config, PpoConfig) and config.shared_critic


def critic_warmup(config: OnlineConfig) -> int:
    """Steps at the start that train the critic alone."""
    return config.critic_warmup if isinstance(config, PpoConfig) else 0


def bootstraps_cut(config: OnlineConfig) -> bool:
    """True: a cut answer also earns the critic's value after its last token."""
    return isinstance(config, PpoConfig) and config.bootstrap_cut


def discount(config: OnlineConfig) -> float:
    """γ per token; 1 for methods without one."""
    return config.gamma if isinstance(config, PpoConfig) else 1.0
