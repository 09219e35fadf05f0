"""Refuses settings of the online methods that contradict each other, and says what to change."""

from trimtab.errors import ConfigError
from trimtab.trainers.reference import check_reference_update
from trimtab.trainers.rl_config import (
    CispoConfig,
    ClippedConfig,
    DapoConfig,
    GdpoConfig,
    GrpoConfig,
    GspoConfig,
    KLConfig,
    NashMdConfig,
    OpponentConfig,
    PolicyGradientConfig,
    PpoConfig,
    ReinforcePpBaselineConfig,
    ReinforcePpConfig,
    RejectionConfig,
    RlConfig,
)
from trimtab.trainers.rl_optional import draws_ahead, overlong_buffer, resample_attempts, scales_scores

LARGEST_STOP = 1.0
"""Largest ``kl.stop`` in nats per token; a larger value was probably meant per answer."""


def check_rl(config: RlConfig, prompts: int) -> None:
    """Refuse settings that cannot work together.

    Raises:
        ConfigError: two settings contradict each other; names both and says what to change.
    """
    size = config.prompts * config.group
    if config.sampler.top_p < 1.0:
        raise ConfigError(
            f"sampler.top_p is {config.sampler.top_p}: the ratio would compare a cut distribution with a whole one; "
            "use top_p: 1.0 while training"
        )
    if config.sampler.temperature == 0.0:
        raise ConfigError(
            "sampler.temperature is 0: greedy decoding makes all answers to a prompt identical; use 0.7 to 1.0"
        )
    _check_selection(config)
    if draws_ahead(config) and (attempts := resample_attempts(config)):
        raise ConfigError(
            f"one_step_off is true and resample is {attempts}: replaced groups would come from newer weights "
            "than the others of their step; set resample: 0, or one_step_off: false"
        )
    if config.minibatches > config.prompts:
        raise ConfigError(
            f"minibatches is {config.minibatches} but a rollout batch has {config.prompts} prompts, whose answers stay "
            "together; lower it"
        )
    if isinstance(config, RejectionConfig) and config.keep >= config.group:
        raise ConfigError(f"keep is {config.keep} of group {config.group} answers: nothing is rejected; lower keep")
    buffer = overlong_buffer(config)
    if buffer is not None and buffer > config.sampler.max_new_tokens:
        raise ConfigError(
            f"overlong_buffer is {buffer} tokens but answers have {config.sampler.max_new_tokens} at most; lower it"
        )
    if (
        isinstance(config, GrpoConfig | DapoConfig | GspoConfig | CispoConfig | GdpoConfig)
        and config.kl.place == "reward"
        and config.kl.coefficient > 0
    ):
        raise ConfigError(
            f"kl.place is 'reward' and {config.method} divides rewards by their standard deviation in the group: where "
            "answers score alike, only the KL penalties differ, and the division makes them as large as any reward, "
            "whatever kl.coefficient is; set kl.place: loss, or use a method without this division (rloo)"
        )
    if config.missing_eos is not None and config.missing_eos.mode == "subtract" and config.missing_eos.value == 0:
        raise ConfigError(
            "missing_eos.mode is 'subtract' and its value 0: nothing is subtracted; set missing_eos.value to "
            "the penalty, or missing_eos: null for none"
        )
    _check_stop(config)
    _check_reference(config)
    if isinstance(config, OpponentConfig):
        _check_opponent(config)
    if isinstance(config, PpoConfig):
        _check_ppo(config)
        _check_critic(config)
    if isinstance(config, PolicyGradientConfig):
        _check_weights(config)
        _check_scores(config)
        _check_kl(config.kl, size)
    if prompts == 0:
        raise ConfigError("there are no prompts to align on; check data.prompts")


def _check_reference(config: RlConfig) -> None:
    """A reference that follows the policy must be used, and must move."""
    if config.reference_update is None:
        return
    unused = isinstance(config, PolicyGradientConfig) and config.kl.coefficient == 0
    if isinstance(config, NashMdConfig) and config.mixture > 0:
        unused = False
    if unused or isinstance(config, RejectionConfig):
        why = "kl.coefficient is 0" if unused else f"method {config.method!r} has no penalty for leaving it"
        raise ConfigError(
            f"reference_update is set and {why}, so nothing depends on the reference; leave reference_update out"
        )
    if config.kl.budget is not None:
        raise ConfigError(
            f"kl.budget is {config.kl.budget:g} and reference_update is set: the KL is measured to a reference that "
            "follows the policy, so it does not say how far the run has moved; leave one of them out"
        )
    check_reference_update(config.reference_update, config.steps)


def _check_opponent(config: RlConfig) -> None:
    """Check what P(an answer beats its opponent's) is computed from."""
    assert isinstance(config, OpponentConfig)
    if scales_scores(config):
        raise ConfigError(
            f"running_scale is true and method {config.method!r} turns rewards into probabilities of winning, whose "
            "scale is fixed; set running_scale: false, and log_odds to what a unit of the reward is worth"
        )
    if config.preference != "given":
        return
    shaping = {"missing_eos": config.missing_eos, "log_odds": config.log_odds}
    if isinstance(config, PolicyGradientConfig):
        shaping |= {"score_clip": config.score_clip, "constraint": config.constraint}
    for name, value in shaping.items():
        if value is not None:
            raise ConfigError(
                f"{name} is set and preference is 'given': the reward is the probability of winning itself, which "
                f"{name} would change; set {name}: null, or preference: bradley_terry"
            )
    if config.sampler.engine == "vllm":
        raise ConfigError(
            "preference is 'given' and sampler.engine 'vllm', which may return an answer without a token: its "
            "opponent's would then be judged beside another answer; set sampler.engine: local"
        )


def _check_ppo(config: PpoConfig) -> None:
    usual = PpoConfig.model_fields["value_coefficient"].default
    if not config.shared_critic and config.value_coefficient != usual:
        raise ConfigError(
            f"value_coefficient is {config.value_coefficient:g} and shared_critic is false: a separate critic "
            "moves no weights of the policy; set shared_critic: true, or leave value_coefficient out"
        )
    if config.shared_critic and config.critic_init != "zero":
        raise ConfigError(
            f"critic_init is {config.critic_init!r} and shared_critic is true: a critic on the policy's hidden states "
            "has no adapter to copy; set critic_init: zero, or shared_critic: false"
        )
    if config.bootstrap_cut and config.missing_eos is not None:
        raise ConfigError(
            "bootstrap_cut is true and missing_eos penalises cut answers: one says that an answer continues after the "
            "cut, the other that it failed there; set missing_eos: null, or bootstrap_cut: false"
        )
    if config.bootstrap_cut and config.overlong_filter:
        raise ConfigError(
            "bootstrap_cut and overlong_filter are both true: answers that are left out of the loss need no value "
            "after their end; keep one of them"
        )


def _check_critic(config: PpoConfig) -> None:
    if config.critic_warmup and config.shared_critic:
        raise ConfigError(
            f"critic_warmup is {config.critic_warmup} and shared_critic is true: a critic on the policy's hidden "
            "states cannot be trained without them; set shared_critic: false, or critic_warmup: 0"
        )
    if config.critic_warmup >= config.steps:
        raise ConfigError(
            f"critic_warmup is {config.critic_warmup} of {config.steps} steps: the policy would never be trained; "
            "raise steps, or lower critic_warmup"
        )


def _check_scores(config: ClippedConfig) -> None:
    """Check the settings that change scores before they become advantages."""
    divides = "std" in type(config).model_fields
    if config.running_scale and divides:
        raise ConfigError(
            f"running_scale is true and {config.method} divides by the group's standard deviation, which undoes any "
            "scale; set running_scale: false, or use a method without this division (rloo, ppo)"
        )
    if isinstance(config, GdpoConfig):
        unused = {"missing_eos": config.missing_eos, "score_clip": config.score_clip}
        for name, value in unused.items():
            if value is not None:
                raise ConfigError(
                    f"{name} is set and method 'gdpo' normalises each reward by itself, so there is no score that it "
                    f"could change; set {name}: null, and give cut or extreme answers a reward of their own"
                )
    if config.running_scale and _scale_cancels(config):
        raise ConfigError(
            f"running_scale is true and {config.method} divides advantages by their deviation over the batch, which "
            "undoes any scale: no penalty is added to the scores (kl.place is 'loss', missing_eos and score_clip are "
            "null); set running_scale: false"
        )
    limit = config.constraint
    if limit is not None and config.score_clip is not None:
        raise ConfigError(
            f"score_clip is {config.score_clip:g} and constraint is set: the clipped score is reward − λ·cost, so a "
            f"high price would be cut off with it; set score_clip: null, and rewards.<name>.clip for each reward"
        )
    if limit is not None and limit.largest is not None and limit.initial > limit.largest:
        raise ConfigError(
            f"constraint.initial is {limit.initial:g} and constraint.largest {limit.largest:g}; start below the largest"
        )


def _scale_cancels(config: ClippedConfig) -> bool:
    """True: scaling all scores changes no advantage. With PPO it changes the critic, so it does not cancel."""
    penalised = config.kl.place == "reward" and config.kl.coefficient > 0
    whitened = isinstance(config, ReinforcePpConfig | ReinforcePpBaselineConfig)
    return whitened and not penalised and config.missing_eos is None and config.score_clip is None


def _check_weights(config: PolicyGradientConfig) -> None:
    """Check which tokens and answers the loss counts, and with what weight."""
    unused = [
        f"importance_{name} is {value}"
        for name, value, usual in (
            ("level", config.importance_level, "token"),
            ("beyond", config.importance_beyond, "truncate"),
            ("floor", config.importance_floor, 0.0),
        )
        if value != usual
    ]
    cap = config.weight_cap
    if cap is None and unused:
        raise ConfigError(
            f"{unused[0]} and importance_cap is not set: without a cap there are no weights; set importance_cap (2 to "
            "truncate, 5 to mask), or leave the others out"
        )
    if config.importance_floor and config.importance_beyond != "mask":
        raise ConfigError(
            f"importance_floor is {config.importance_floor:g} and importance_beyond 'truncate', which has no lower "
            "end; set importance_beyond: mask, or leave importance_floor out"
        )
    if cap is not None and config.importance_floor >= cap:
        raise ConfigError(
            f"importance_floor is {config.importance_floor:g} and importance_cap {cap:g}: nothing "
            "lies between them; raise importance_cap"
        )
    if config.overlong_filter and config.missing_eos is not None:
        raise ConfigError(
            "overlong_filter is true and missing_eos penalises cut answers: they are left out of the loss, so the "
            "penalty would only raise the others' advantages; set missing_eos: null, or overlong_filter: false"
        )
    if isinstance(config, GspoConfig) and config.entropy_top is not None:
        raise ConfigError(
            f"entropy_top is {config.entropy_top:g} and method 'gspo', whose ratio belongs to a whole answer and not "
            "to its tokens; leave entropy_top out, or use grpo"
        )
    if isinstance(config, CispoConfig) and config.dual_clip is not None:
        raise ConfigError(
            f"dual_clip is {config.dual_clip:g} and method 'cispo', whose weights eps_high limits for advantages of "
            "both signs; leave dual_clip out"
        )


def _check_selection(config: RlConfig) -> None:
    """Check which weights the run ends with, and when it ends early."""
    if config.patience is not None and config.select == "last":
        raise ConfigError(
            f"patience is {config.patience} and select 'last': no score says whether a step is better; set select: "
            "heldout, or leave patience out"
        )
    target, budget = getattr(config.kl, "target", None), config.kl.budget
    if target is not None and budget is not None and target >= budget:
        raise ConfigError(
            f"kl.target is {target:g} and kl.budget {budget:g} nats per answer: training would end on the way to its "
            "target; lower the target, or leave one of them out"
        )


def _check_stop(config: RlConfig) -> None:
    stop = config.kl.stop
    if stop is None:
        return
    if stop > LARGEST_STOP:
        raise ConfigError(
            f"kl.stop is {stop:g} nats per token: an answer of {config.sampler.max_new_tokens} tokens could move by "
            f"{stop * config.sampler.max_new_tokens:g} nats in one step and nothing would be stopped; use 0.01 to 0.1 "
            "(kl.target is the limit per answer)"
        )
    if config.epochs * config.minibatches == 1:
        raise ConfigError(
            f"kl.stop is {stop:g}, but epochs and minibatches are 1: the only update of a step starts at a KL of 0 and "
            "is never stopped; raise epochs or minibatches, or leave kl.stop out"
        )


def _check_kl(kl: KLConfig, size: int) -> None:
    if kl.place == "reward" and kl.estimator is not None:
        raise ConfigError(
            f"kl.estimator is {kl.estimator!r} and kl.place is 'reward', where the penalty is always −β·k1; set "
            "kl.estimator: null, or kl.place: loss"
        )
    if kl.place == "loss" and kl.estimator == "k1" and kl.target is not None:
        raise ConfigError(
            "kl.estimator is 'k1' in the loss and kl.target is set: k1 has no gradient in expectation, so no β steers "
            "the KL; use kl.estimator: sequence, or kl.place: reward"
        )
    if kl.target is None:
        return
    if 0.2 * size >= kl.horizon:
        raise ConfigError(
            f"kl.horizon is {kl.horizon:g} sequences but a rollout batch has {size}: one step would change β by more "
            f"than all of it; raise kl.horizon above {0.2 * size:g}"
        )
    if kl.coefficient == 0.0:
        raise ConfigError(
            "kl.coefficient is 0 and kl.target is set: β is multiplied, so it would stay 0; start above 0"
        )
