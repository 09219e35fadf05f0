"""Drawing and scoring answers on several ranks; all answers to a prompt stay on one rank."""

from collections.abc import Callable, Sequence

from trimtab.records import Prompt, Rollout
from trimtab.rollout import by_prompt
from trimtab.trainers.group import Group
from trimtab.trainers.scoring import Scored


def drawn_by_share(
    group: Group,
    phase: str,
    prompts: Sequence[Prompt],
    draw: Callable[[Sequence[Prompt]], list[Rollout]],
    *,
    answers: int,
) -> list[Rollout]:
    """Answers to all prompts; each rank draws its share.

    An answer's random stream depends on its prompt and its place in the group, so the text does not depend on the rank.
    A prompt that occurs twice stays on one rank, and its answers get successive places.

    Args:
        group: the ranks.
        phase: for messages.
        prompts: the same on every rank.
        draw: prompts → their answers, in order.
        answers: number of answers to each prompt.
    """
    if group.size == 1:
        return draw(prompts)
    bundles = by_prompt(prompts)

    def of(own: list[list[int]]) -> list[list[list[Rollout]]]:
        rollouts = draw([prompts[i] for bundle in own for i in bundle]) if own else []
        each = iter(rollouts[i : i + answers] for i in range(0, len(rollouts), answers))
        return [[next(each) for _ in bundle] for bundle in own]

    drawn = group.spread(phase, bundles, of)
    by_place = {
        i: own for bundle, parts in zip(bundles, drawn, strict=True) for i, own in zip(bundle, parts, strict=True)
    }
    return [rollout for i in range(len(prompts)) for rollout in by_place[i]]


def scored_by_share(
    group: Group, phase: str, rollouts: Sequence[Rollout], score: Callable[[Sequence[Rollout]], Scored], *, answers: int
) -> Scored:
    """All answers with their rewards; each rank scores its share.

    Args:
        group: the ranks.
        phase: for messages.
        rollouts: the same on every rank; all answers to a prompt are consecutive.
        score: rollouts → the same with their rewards.
        answers: number of answers to each prompt.
    """
    if group.size == 1:
        return score(rollouts)

    def of(own: list[int]) -> list[Scored]:
        scored = score([r for i in own for r in rollouts[i : i + answers]])
        return [scored.part(slice(i, i + answers)) for i in range(0, len(scored.rollouts), answers)]

    parts = group.spread(phase, range(0, len(rollouts), answers), of)
    return Scored(
        rollouts=[rollout for part in parts for rollout in part.rollouts],
        totals=[total for part in parts for total in part.totals],
        placed=[places for part in parts for places in part.placed],
    )
