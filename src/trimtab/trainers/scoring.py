"""Scores of sampled answers: reward components, their weighted sums, step rewards, clipping and penalties."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Any

import torch
from torch import Tensor

from trimtab.algos import overlong_penalty, penalise_missing_eos, win_probability
from trimtab.errors import NonFiniteError, ScoringError
from trimtab.records import Rollout
from trimtab.rollout import Scorer
from trimtab.rollout.rewards import finite_reward, one_per_answer
from trimtab.trainers.rl_config import OpponentConfig, RlConfig
from trimtab.trainers.rl_optional import overlong_buffer, score_clip_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """Rollouts with their rewards."""

    rollouts: list[Rollout]
    """With ``rewards`` and ``step_rewards`` filled in."""
    totals: list[float]
    """For each answer, the weighted sum of all components."""
    placed: list[dict[int, float]]
    """The part of the total that is earned at ends of steps: weighted reward by place in ``rollout.tokens``."""

    resampled: int | None = None
    """Number of flat groups replaced with groups of other prompts; None: the method replaces none."""
    opponents: "Scored | None" = None
    """The opponents' answers, one for each rollout; None: the method has no opponent."""
    scale: float = 1.0
    """Divisor of totals and step rewards when they become scores (``running_scale``)."""

    def part(self, which: slice) -> "Scored":
        """A slice of the answers."""
        return Scored(rollouts=self.rollouts[which], totals=self.totals[which], placed=self.placed[which])

    def replace_groups(self, groups: Sequence[int], other: "Scored", size: int) -> "Scored":
        """These answers with the given groups of ``size`` replaced by the groups of ``other``, in order."""
        rollouts, totals, placed = list(self.rollouts), list(self.totals), list(self.placed)
        for number, group in enumerate(groups):
            old, new = slice(group * size, (group + 1) * size), slice(number * size, (number + 1) * size)
            rollouts[old], totals[old], placed[old] = other.rollouts[new], other.totals[new], other.placed[new]
        resampled = (self.resampled or 0) + len(groups)
        return Scored(rollouts=rollouts, totals=totals, placed=placed, resampled=resampled)


def score_pairs(
    rollouts: Sequence[Rollout],
    opponents: Sequence[Rollout],
    score: Callable[[Sequence[Rollout]], Scored],
) -> Scored:
    """Score answers and opponents' answers together; each answer is followed by its opponent's."""
    scored = score([rollout for pair in zip(rollouts, opponents, strict=True) for rollout in pair])
    return replace(scored.part(slice(0, None, 2)), opponents=scored.part(slice(1, None, 2)))


def score_rollouts(rollouts: Sequence[Rollout], score: Scorer, weights: Mapping[str, float], step: int) -> Scored:
    """Score rollouts. Answers without a token are not passed to ``score``; they have no rewards and a total of 0.

    A component is a list with one entry per answer: a number, or ``(place, number)`` pairs, each with the place of the
    token after which the number is earned.

    Returns:
        the rollouts with ``rewards`` and, for rewards placed at steps, ``step_rewards``.

    Raises:
        ScoringError: ``score`` raised, or returned the wrong length or type; names the sample of a wrong value.
        NonFiniteError: a component is NaN, infinite or too large to compute with; names the sample.
    """
    answered = [(row, rollout) for row, rollout in enumerate(rollouts) if rollout.tokens]
    if not answered:
        return Scored(rollouts=list(rollouts), totals=[0.0] * len(rollouts), placed=[{} for _ in rollouts])
    try:
        components = score([rollout for _, rollout in answered])
    except (ScoringError, NonFiniteError):
        raise
    except Exception as error:
        raise ScoringError(f"the reward function raised {type(error).__name__} at step {step}: {error}") from error
    if not isinstance(components, Mapping) or not components:
        raise ScoringError(
            f"the reward function returned {type(components).__name__}; expected a dict of name → list of floats"
        )
    rewards: list[dict[str, float]] = [{} for _ in rollouts]
    step_rewards: list[dict[str, list[tuple[int, float]]]] = [{} for _ in rollouts]
    placed: list[dict[int, float]] = [{} for _ in rollouts]
    answers = [rollout for _, rollout in answered]
    for name, values in components.items():
        for (row, rollout), value in zip(answered, one_per_answer(name, values, answers), strict=True):
            if not _is_placed(value):
                rewards[row][name] = finite_reward(name, value, rollout.id)
                continue
            pairs = _step_rewards(name, value, rollout)
            rewards[row][name] = sum(reward for _, reward in pairs)
            step_rewards[row][name] = pairs
            for place, reward in pairs:
                placed[row][place] = placed[row].get(place, 0.0) + weights.get(name, 1.0) * reward
    return Scored(
        rollouts=[
            replace(r, rewards=r.rewards | whole, step_rewards=r.step_rewards | steps)
            for r, whole, steps in zip(rollouts, rewards, step_rewards, strict=True)
        ],
        totals=[sum(weights.get(name, 1.0) * reward for name, reward in whole.items()) for whole in rewards],
        placed=placed,
    )


def _is_placed(value: Any) -> bool:
    """True: step rewards, which are a list; numbers and arrays of one number are not."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and not hasattr(value, "__float__")


def _step_rewards(name: str, value: Sequence[Any], rollout: Rollout) -> list[tuple[int, float]]:
    """One answer's (place, number) pairs."""
    pairs = []
    for pair in value:
        try:
            if not isinstance(pair, Sequence) or isinstance(pair, str | bytes):
                raise TypeError
            place, reward = pair
            place = index(place)
        except (TypeError, ValueError):
            raise ScoringError(
                f"reward {name!r} for sample {rollout.id}: expected a number, or (place, number) pairs with whole "
                f"numbers as places (got {value!r:.100})"
            ) from None
        if not 0 <= place < len(rollout.tokens):
            raise ScoringError(
                f"reward {name!r} is placed after token {place} of sample {rollout.id}, whose answer has "
                f"{len(rollout.tokens)} tokens; places count from 0"
            )
        pairs.append((place, finite_reward(name, reward, rollout.id)))
    return pairs


def answer_scores(config: RlConfig, scored: Scored) -> Tensor:
    """Score of each whole answer, ``[B]``: clipped, then with the missing-EOS and the overlong penalty.

    The overlong penalty comes last and gives a cut answer the length ``max_new_tokens``. So a cut answer never scores
    higher than one with the same reward that ended just before the limit. Step rewards are not included; they go to
    their tokens unchanged.
    """
    scores = whole_rewards(scored)
    if (clip := score_clip_of(config)) is not None:
        scores = scores.clamp(-clip, clip)
    ended = ended_of(scored.rollouts)
    if config.missing_eos is not None:
        scores = penalise_missing_eos(scores, ended, penalty=config.missing_eos.value, mode=config.missing_eos.mode)
    if (buffer := overlong_buffer(config)) is not None:
        limit, lengths = config.sampler.max_new_tokens, torch.tensor([len(r.tokens) for r in scored.rollouts])
        scores = scores + overlong_penalty(torch.where(ended, lengths, limit), max_tokens=limit, buffer=buffer)
    return scores


def wins_of(config: RlConfig, scored: Scored) -> Tensor | None:
    """P(each answer beats its opponent's), ``[B]``; None: the method has no opponent.

    A pair with an empty answer has probability one half.

    Raises:
        ScoringError: a preference that was given is not a probability.
    """
    if scored.opponents is None or not isinstance(config, OpponentConfig):
        return None
    if config.preference == "bradley_terry":
        own, other = answer_scores(config, scored), answer_scores(config, scored.opponents)
        wins = win_probability(own, other, log_odds=config.log_odds or 1.0)
    else:
        wins = whole_rewards(scored)
    both = [bool(a.tokens and b.tokens) for a, b in zip(scored.rollouts, scored.opponents.rollouts, strict=True)]
    wins = torch.where(torch.tensor(both), wins, 0.5)
    for rollout, chance in zip(scored.rollouts, wins.tolist(), strict=True):
        if not 0 <= chance <= 1:
            raise ScoringError(
                f"preference is 'given' and the reward of sample {rollout.id} is {chance:g}; expected the probability "
                "that it beats its opponent's answer, in [0, 1]. Mend the reward function, or use preference: "
                "bradley_terry"
            )
    return wins


def ended_of(rollouts: Sequence[Rollout]) -> Tensor:
    """``[B]`` bool, True: the answer ended its turn; False: it was cut."""
    return torch.tensor([r.finish_reason == "stop" for r in rollouts])


def components(scored: Scored, weights: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """Each named reward, ``[B, R]``, and its weight, ``[R]``; 0 for answers without a token."""
    names = sorted({name for r in scored.rollouts for name in r.rewards})
    rows = [[r.rewards.get(name, 0.0) for name in names] for r in scored.rollouts]
    return torch.tensor(rows, dtype=torch.float32), torch.tensor([weights.get(name, 1.0) for name in names])


def whole_rewards(scored: Scored) -> Tensor:
    """Reward of each whole answer, ``[B]``: its total without its step rewards."""
    whole = [(total - sum(at.values())) / scored.scale for total, at in zip(scored.totals, scored.placed, strict=True)]
    return torch.tensor(whole, dtype=torch.float32)
