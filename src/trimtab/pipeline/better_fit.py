"""Hints for ``plan`` about methods or settings that suit a recipe's judged answers better.

A hint says what the recipe's method loses or gets wrong on these data, and what to use instead. Nothing is changed.
"""

from dataclasses import dataclass

from trimtab.pipeline.config import RunConfig
from trimtab.pipeline.costs import Sizing
from trimtab.records import Preference, Rating
from trimtab.trainers import (
    OFFLINE,
    ONLINE,
    DpoConfig,
    KtoConfig,
    OnlineConfig,
    PairConfig,
    PolicyGradientConfig,
    RlConfig,
    methods_with,
)

FEW = 100
"""Fewer preferences than this are few."""

OFTEN_TIED = 0.1
"""From this share of ties on, a reward model with ties is recommended."""

OFTEN_LONGER = 0.65
"""From this share of pairs with a longer better answer on, length explains much of the preference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedData:
    """Facts about the judged answers of a recipe, as far as they are known before the run."""

    preferences: int = 0
    """Number of preferences; 0: unknown."""
    answers: int = 2
    """Largest number of answers in a preference."""
    tied: int = 0
    """Preferences whose answers all have the same rank."""
    soft: int = 0
    """Preferences with a soft label."""
    pairs: int = 0
    """Strict pairs of answers."""
    longer: int = 0
    """Strict pairs whose better answer has more characters."""
    liked: int = 0
    """Thumbs up."""
    disliked: int = 0
    """Thumbs down."""


def judged_data(sizing: Sizing) -> JudgedData:
    """Read the recipe's preferences or thumbs; of answers that are not sampled yet, only the numbers are known."""
    data = sizing.config.data
    ratings = sizing.records(data.ratings, Rating)
    if ratings:
        liked = sum(rating.good for rating in ratings)
        return JudgedData(liked=liked, disliked=len(ratings) - liked)
    preferences = sizing.records(data.preferences, Preference)
    if not preferences:
        count, answers = sizing.preferences
        return JudgedData(preferences=count, answers=answers)
    pairs = [pair for p in preferences for pair in _strict_pairs(p)]
    return JudgedData(
        preferences=len(preferences),
        answers=max(len(p.completions) for p in preferences),
        tied=sum(len(set(p.ranks)) == 1 and p.probability is None for p in preferences),
        soft=sum(p.probability not in (None, 0.0, 1.0) for p in preferences),
        pairs=len(pairs),
        longer=sum(len(better) > len(worse) for better, worse in pairs),
    )


def _strict_pairs(preference: Preference) -> list[tuple[str, str]]:
    """Texts of the better and the worse answer of each pair with a winner."""
    texts, ranks = [c.text for c in preference.completions], preference.ranks
    if preference.probability is not None:
        ranks = (0, 1) if preference.probability > 0.5 else (1, 0) if preference.probability < 0.5 else (0, 0)
    places = range(len(texts))
    return [(texts[i], texts[j]) for i in places for j in places if ranks[i] < ranks[j]]


def better_fit(config: RunConfig, data: JudgedData) -> list[str]:
    """Methods and settings that learn more from the recipe's data than its own.

    Args:
        config: the recipe.
        data: facts about its judged answers.
    """
    lines, align = _for_the_reward_model(config, data), config.align
    if isinstance(align, KtoConfig):
        return lines + _for_kto(config, align, data)
    if isinstance(align, OnlineConfig):
        return lines + _for_online(config, align)
    return lines if align is None else lines + _for_pairs(align, data)


def _for_the_reward_model(config: RunConfig, data: JudgedData) -> list[str]:
    reward, count, lines = config.reward, data.preferences, []
    if reward is None or not count:
        return lines
    if data.tied >= OFTEN_TIED * count and not reward.ties:
        lines.append(
            f"{data.tied} of {count} preferences are ties, which reward.loss {reward.loss} leaves out; davidson or "
            "rao_kupper learns from them"
        )
    if count < FEW:
        lines.append(
            f"{count} preferences are few for a reward model, and a policy that maximises it finds its errors; "
            "align.method ipo learns from the preferences themselves"
        )
    return lines


def _for_kto(config: RunConfig, align: KtoConfig, data: JudgedData) -> list[str]:
    if not config.data.ratings:
        return [
            "the data are comparisons, of which kto keeps only which answers won more than they lost; align.method dpo "
            "learns from who beat whom"
        ]
    up, down = align.weight_desirable * data.liked, align.weight_undesirable * data.disliked
    if not up and not down:  # the file is missing, so nothing can be counted
        return []
    if not (up and down):
        kind, advice = ("up", "; sft imitates the liked answers (data.demonstrations)") if up else ("down", "")
        return [f"all {data.liked + data.disliked} thumbs are {kind}, and kto learns from the contrast of both{advice}"]
    if 1 <= up / down <= 4 / 3:
        return []
    setting, value = "weight_desirable", down / data.liked
    if up > down:
        setting, value = "weight_undesirable", up / data.disliked
    return [
        f"{data.liked} thumbs up and {data.disliked} down: weight_desirable·up/(weight_undesirable·down) is "
        f"{up / down:.2g}, and KTO's authors advise 1 to 1.33; set align.{setting}: {value:.2g}"
    ]


def _for_pairs(align: PairConfig, data: JudgedData) -> list[str]:
    method, count, lines = OFFLINE[align.method], data.preferences, []
    if data.soft and not method.soft_labels:
        lines.append(
            f"{data.soft} of {count} preferences carry soft labels, which {align.method} has no formula for, so the "
            f"run will stop; use align.method {', '.join(methods_with(soft_labels=True))}"
        )
    if method.listwise and data.answers == 2:
        lines.append(f"preferences rank 2 answers, for which {align.method} is dpo; dpo also takes soft labels")
    elif method.reference and not method.listwise and data.answers > 2:
        lines.append(
            f"preferences rank {data.answers} answers; align.method {' or '.join(methods_with(listwise=True))} learns "
            f"from their whole order, {align.method} from each pair alone"
        )
    if count and data.tied >= OFTEN_TIED * count:
        lines.append(
            f"{data.tied} of {count} preferences are ties, from which {align.method} learns nothing; a reward model "
            "with reward.loss davidson or rao_kupper learns from them, for align.method ppo or rloo"
        )
    if data.pairs >= FEW and data.longer >= OFTEN_LONGER * data.pairs and not method.per_token_gap(align):
        has_normalise = "normalise" in type(align).model_fields
        lines.append(
            f"in {data.longer / data.pairs:.0%} of pairs the better answer is the longer one, and {align.method} "
            "learns length with the rest, because it sums over tokens; to compare per token, "
            + ("set align.normalise: true" if has_normalise else "align.method dpo with normalise: true, or simpo")
        )
    if isinstance(align, DpoConfig) and 0 < count < FEW and not (data.soft or align.label_smoothing):
        lines.append(
            f"{count} preferences are few, and dpo pushes certain labels without end; align.method ipo stops at a gap, "
            "and align.label_smoothing bounds it too"
        )
    return lines


def _for_online(config: RunConfig, align: RlConfig) -> list[str]:
    rewards, method, lines = config.rewards or {}, ONLINE[align.method], []
    divides = "std" in method.config.model_fields
    if divides and len(rewards) > 1 and not method.several_rewards:
        lines.append(
            f"{len(rewards)} rewards are added before {align.method} divides by their deviation, so the one that "
            f"varies most decides; align.method {' or '.join(methods_with(several_rewards=True))} normalises each by "
            "itself"
        )
    if len(rewards) <= 1 and method.several_rewards:
        lines.append(f"align.method {align.method} is for several rewards and there is one; use grpo or rloo")
    costs = [name for name, source in rewards.items() if source.weight < 0]
    if costs and len(rewards) > 1 and isinstance(align, PolicyGradientConfig) and align.constraint is None:
        lines.append(
            f"rewards.{costs[0]} has the fixed weight {rewards[costs[0]].weight:g}, so how much of it a policy accepts "
            "depends on the scale of the other rewards; align.constraint gives it a limit instead"
        )
    return lines
