"""KTO: a policy learns from single answers, liked or not, without sampling.

L = (1/N) Σ_answers  w · ℓ(answer, liked or not, z),  z from the step's mismatched answers

See :func:`trimtab.algos.kto_loss`. The reference runs once on every answer, and in each step on the mismatched ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.algos import kto_loss, kto_reference_point, masked_sum
from trimtab.errors import DataError
from trimtab.models import Batch, Chat, FrozenStates, Role, collate, leave_out
from trimtab.models.batch import collate_answers
from trimtab.records import Rating
from trimtab.trainers.group import ALONE, Group
from trimtab.trainers.learner import Metrics, Norms
from trimtab.trainers.offline import added_up, fit
from trimtab.trainers.offline_config import KtoConfig
from trimtab.trainers.progress import Session
from trimtab.trainers.rankings import Ranking
from trimtab.trainers.reference import moving_reference


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """One answer that was liked or not, encoded."""

    id: str
    """For messages."""
    prompt: list[int]
    """Prompt tokens."""
    answer: list[int]
    """Answer tokens, end-of-turn included."""
    desirable: bool
    """True: liked."""
    weight: float = 1.0
    """Weight in the loss."""

    @property
    def tokens(self) -> list[int]:
        """Prompt and answer."""
        return self.prompt + self.answer


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """A micro-batch of a step."""

    answers: list[Judged]
    tokens: Batch
    point: Tensor
    """The step's z, nats."""


def judged_from_rankings(rankings: Sequence[Ranking]) -> tuple[list[Judged], int]:
    """An answer that wins more pairs than it loses is liked, the reverse disliked; balanced ones are counted."""
    answers, balanced = [], 0
    for ranking in rankings:
        pairs = ranking.pairs().tolist()
        if ranking.probability is not None and ranking.probability <= 0.5:
            pairs = [[b, a] for a, b in pairs if ranking.probability < 0.5]
        for number, sequence in enumerate(ranking.sequences):
            wins, losses = sum(a == number for a, _ in pairs), sum(b == number for _, b in pairs)
            if wins == losses:
                balanced += 1
                continue
            answers.append(
                Judged(
                    id=f"{ranking.id}/{number}",
                    prompt=sequence[: ranking.prompt_length],
                    answer=sequence[ranking.prompt_length :],
                    desirable=wins > losses,
                    weight=ranking.weight,
                )
            )
    return answers, balanced


def encode_ratings(chat: Chat, ratings: Sequence[Rating]) -> tuple[list[Judged], dict[str, Any]]:
    """Ratings as tokens, and those left out: the number ``too_long``, and why others are ``unrendered``, by id."""
    judged: list[Judged] = []
    left_out: dict[str, Any] = {"too_long": 0, "unrendered": {}}
    for rating in ratings:
        messages, answer = rating.prompt.messages, rating.completion
        try:
            prompt = chat.prompt(messages)
            encoded = chat.answer(messages, answer.text, answer.finish_reason)
            if not any(encoded.response_mask):
                raise DataError("an answer was cut before its first word")
        except DataError as error:
            leave_out(left_out, rating.id, error)
            continue
        judged.append(Judged(id=rating.id, prompt=prompt, answer=encoded.tokens[len(prompt) :], desirable=rating.good))
    return judged, left_out


def train_kto(
    policy: Role,
    reference: Role,
    answers: Sequence[Judged],
    config: KtoConfig,
    *,
    seed: int,
    session: Session | None = None,
) -> None:
    """Train ``policy`` in place on answers that were liked or not.

    Args:
        policy: starts at the reference's weights.
        reference: frozen; runs once on every answer, and in each step on its mismatched answers. With
            ``config.reference_update`` the moving reference starts from it and runs on every step's answers.
        answers: liked and disliked ones.
        config: settings.
        seed: order of the answers and dropout.
        session: logging, checkpoints, stopping; None: logs and saves nothing.

    Raises:
        DataError: fewer than two answers, or all of one kind.
        NonFiniteError: the loss became NaN or infinite.
    """
    liked = sum(a.desirable for a in answers)
    if liked in (0, len(answers)) or len(answers) < 2:
        raise DataError(
            f"KTO needs answers of both kinds, got {liked} liked and {len(answers) - liked} disliked; with one kind "
            "only, use supervised fine-tuning on the liked ones, or collect the other kind"
        )
    group = ALONE if session is None else session.group
    states = FrozenStates.within(reference.backbone, config.cache_mb)
    known = _reference_logprobs(reference, answers, states, config.micro_batch_tokens)
    moving = moving_reference(reference, policy, config.reference_update)
    if group.shards:
        reference.shard()

    def parts(chosen: list[Judged]) -> list[tuple[list[str], _Part]]:
        if moving is not None:
            with moving.gathered():
                known.update(_reference_logprobs(moving, chosen, None, config.micro_batch_tokens))
        point = _reference_point(policy, moving or reference, chosen, config.micro_batch_tokens, group)
        return [([a.id for a in part.answers], part) for part in _parts(policy, chosen, point, config)]

    def loss(part: _Part, norms: Norms) -> tuple[Tensor, Metrics]:
        return _kto_loss(policy, part, known, norms, config, states)

    fit(
        policy,
        answers,
        config,
        weight=lambda a: a.weight,
        parts=parts,
        loss=loss,
        seed=seed,
        session=session,
        reference=moving,
    )


@torch.no_grad()
def evaluate_kto(policy: Role, reference: Role, answers: Sequence[Judged], config: KtoConfig) -> Metrics:
    """The training objective and its metrics on answers that were not trained on; empty if there are fewer than two."""
    if len(answers) < 2:
        return {}
    point = _reference_point(policy, reference, answers, config.micro_batch_tokens)
    known = _reference_logprobs(reference, answers, None, config.micro_batch_tokens)
    norms = Norms(tokens=0, sequences=sum(a.weight for a in answers))
    return added_up(_kto_loss(policy, part, known, norms, config) for part in _parts(policy, answers, point, config))


@torch.no_grad()
def _reference_logprobs(
    reference: Role, answers: Sequence[Judged], states: FrozenStates | None, micro_batch_tokens: int
) -> dict[tuple[int, ...], float]:
    """Log-probability of every answer under the reference, nats, by the answer's tokens; fills ``states`` first.

    Computed before the first step and always in the same batches, so that a resumed run reads the same bits.
    """
    known: dict[tuple[int, ...], float] = {}
    batch = collate_answers([(a.prompt, a.answer) for a in answers], reference.backbone.device)
    if states is not None:
        states.fill(part for _, part in batch.micro_batches(micro_batch_tokens))
    for index, part in batch.micro_batches(micro_batch_tokens):
        sums = masked_sum(reference.logprobs(part, states=states), part.response_mask, dim=1)
        known |= zip([_key(answers[i]) for i in index.tolist()], sums.tolist(), strict=True)
    return known


def _key(answer: Judged) -> tuple[int, ...]:
    return (len(answer.prompt), *answer.tokens)


def _kto_loss(
    policy: Role,
    part: _Part,
    reference: dict[tuple[int, ...], float],
    norms: Norms,
    config: KtoConfig,
    states: FrozenStates | None = None,
) -> tuple[Tensor, Metrics]:
    """The part's share of the loss, and of the metrics of its answers (weighted like the loss)."""
    point = part.point
    sums = masked_sum(policy.logprobs(part.tokens, states=states), part.tokens.response_mask, dim=1)
    known = sums.new_tensor([reference[_key(a)] for a in part.answers])
    liked = torch.tensor([a.desirable for a in part.answers], device=sums.device)
    weight = sums.new_tensor([a.weight for a in part.answers]) / norms.sequences
    losses = kto_loss(
        sums,
        known,
        liked,
        point,
        beta=config.beta,
        weight_desirable=config.weight_desirable,
        weight_undesirable=config.weight_undesirable,
    )
    with torch.no_grad():
        ratio = sums - known
        right = (ratio > point) == liked
        metrics = {
            "accuracy": float((weight * right).sum()),
            "chosen": float((weight * ratio * liked).sum()),
            "rejected": float((weight * ratio * ~liked).sum()),
            "reference_point": float(point * weight.sum()),
        }
    return (weight * losses).sum(), metrics


@torch.no_grad()
def _reference_point(
    policy: Role, reference: Role, answers: Sequence[Judged], micro_batch_tokens: int, group: Group = ALONE
) -> Tensor:
    """The z of a step, from each answer paired with a different prompt; pairs that exceed the context are left out.

    0 if no pair is left: all answers are to one prompt, or every pair is too long.
    """
    device = policy.backbone.device
    fitting = [(p, a) for p, a in _mismatched(answers) if len(p) + len(a) <= policy.backbone.chat.context]
    if not fitting:
        return torch.zeros((), device=device)
    batch = collate([p + a for p, a in fitting], [[False] * len(p) + [True] * len(a) for p, a in fitting], device)
    states = FrozenStates(reference.backbone)  # for this step: both models run on the same sequences
    sums = torch.zeros(2, len(fitting), device=device)
    with policy.gathered(), reference.gathered():
        for index, part in group.share(list(batch.micro_batches(micro_batch_tokens))):
            for row, role in enumerate((policy, reference)):
                sums[row, index] = role.logprobs(part, states=states).sum(dim=1)
    group.sum_("reference point", [sums])  # each entry was computed by one rank and is zero on the others
    return kto_reference_point(sums[0], sums[1])


def _mismatched(answers: Sequence[Judged]) -> list[tuple[list[int], list[int]]]:
    """Each answer with a mismatched prompt: that of the next answer, cyclically, with a different prompt."""
    pairs = []
    for place, judged in enumerate(answers):
        following = [*answers[place + 1 :], *answers[:place]]
        other = next((a.prompt for a in following if a.prompt != judged.prompt), None)
        if other is not None:
            pairs.append((other, judged.answer))
    return pairs


def _parts(policy: Role, answers: Sequence[Judged], point: Tensor, config: KtoConfig) -> list[_Part]:
    batch = collate_answers([(a.prompt, a.answer) for a in answers], policy.backbone.device)
    return [
        _Part(answers=[answers[i] for i in index.tolist()], tokens=part, point=point)
        for index, part in batch.micro_batches(config.micro_batch_tokens)
    ]
