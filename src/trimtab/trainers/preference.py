"""Offline alignment: a policy learns from judged answers, without sampling. One loop, seven losses.

Pairs:  L = (1/N) Σ_rankings w · mean over its strict pairs of ℓ(pair),  N = Σ w of the optimiser step
KTO:    L = (1/N) Σ_answers  w · ℓ(answer, liked or not, z),  z from the step's mismatched answers

ℓ is a function of log π(answer) summed over response tokens and, where the method has a reference,
of log ref(answer); see :mod:`trimtab.algos.preference`. Every answer of a ranking is run once,
however many pairs it is in. The reference never changes, so it is run once and kept.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from trimtab.algos import (
    cpo_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    masked_sum,
    orpo_loss,
    simpo_loss,
)
from trimtab.config import Config
from trimtab.errors import ConfigError, DataError
from trimtab.models import (
    PASS_TOKENS,
    AdapterConfig,
    Batch,
    Chat,
    LowerCache,
    Role,
    collate,
    leave_out,
    load_tensors,
    parts_of_like_size,
    save_tensors,
)
from trimtab.records import Rating
from trimtab.trainers.checkpoint import seed_step
from trimtab.trainers.defaults import with_lr
from trimtab.trainers.learner import Learner, Metrics, Norms, OptimizerConfig
from trimtab.trainers.progress import Session
from trimtab.trainers.reward import Ranking, fill_lower_cache, packed_size
from trimtab.trainers.sft import step_indices

T = TypeVar("T")


class OfflineConfig(Config):
    """What all offline methods have in common."""

    adapter: AdapterConfig = AdapterConfig()
    """What is trained."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How."""
    epochs: float = Field(default=1.0, gt=0.0)
    """Passes over the preferences."""
    batch: int = Field(default=16, ge=1)
    """Rankings (KTO: answers) per optimiser step."""
    holdout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of prompts kept out of training, to measure the loss and the implied accuracy on unseen ones."""
    micro_batch_tokens: int = Field(default=512, ge=1)
    """Padded tokens held in memory at once; one ranking at least."""
    cache_mb: float = Field(default=1024.0, ge=0.0)
    """Memory for what frozen lower layers give, so that they run once and not once per pass."""


class DpoConfig(OfflineConfig):
    """Direct preference optimisation; with ``label_smoothing`` also cDPO and robust DPO."""

    method: Literal["dpo"] = "dpo"
    """The algorithm."""
    beta: float = Field(default=0.1, gt=0.0)
    """β, reward units per nat: the leash to the reference."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """ε, the share of labels that are believed to be wrong."""
    smoothing: Literal["conservative", "robust"] = "conservative"
    """``conservative``: cDPO, stays cautious; ``robust``: unbiased for the loss under the true labels."""


class IpoConfig(OfflineConfig):
    """Identity preference optimisation."""

    method: Literal["ipo"] = "ipo"
    """The algorithm."""
    tau: float = Field(default=0.1, gt=0.0)
    """τ: the log-ratio gap is drawn to 1/(2τ) nats."""


class HingeConfig(OfflineConfig):
    """Hinge loss on the implied reward."""

    method: Literal["hinge"] = "hinge"
    """The algorithm."""
    beta: float = Field(default=0.1, gt=0.0)
    """β, reward units per nat."""


class KtoConfig(OfflineConfig):
    """Kahneman–Tversky optimisation on single answers, liked or not."""

    method: Literal["kto"] = "kto"
    """The algorithm."""
    beta: float = Field(default=0.1, gt=0.0)
    """β, reward units per nat."""
    weight_desirable: float = Field(default=1.0, gt=0.0)
    """λ_D, weight of liked answers."""
    weight_undesirable: float = Field(default=1.0, gt=0.0)
    """λ_U, weight of disliked ones; the paper advises λ_D·n_D / (λ_U·n_U) between 1 and 4/3."""
    batch: int = Field(default=16, ge=2)
    """Answers per optimiser step; two at least, z compares an answer with another prompt."""


class OrpoConfig(OfflineConfig):
    """Odds-ratio preference optimisation; no reference."""

    method: Literal["orpo"] = "orpo"
    """The algorithm."""
    lam: float = Field(default=0.1, gt=0.0)
    """λ, weight of the odds-ratio term beside the likelihood of the better answer."""


class SimpoConfig(OfflineConfig):
    """Simple preference optimisation; no reference."""

    method: Literal["simpo"] = "simpo"
    """The algorithm."""
    beta: float = Field(default=2.0, gt=0.0)
    """β, on log-probabilities averaged over tokens."""
    gamma: float = Field(default=1.0, ge=0.0)
    """γ, the margin the better answer must win by."""


class CpoConfig(OfflineConfig):
    """Contrastive preference optimisation; no reference."""

    method: Literal["cpo"] = "cpo"
    """The algorithm."""
    beta: float = Field(default=0.1, gt=0.0)
    """β, per nat."""
    alpha: float = Field(default=1.0, ge=0.0)
    """Weight of the likelihood of the better answer."""
    nll: Literal["mean", "sum"] = "mean"
    """That likelihood averaged over tokens, as in the authors' code, or summed, as in the paper."""


PairConfig = DpoConfig | IpoConfig | HingeConfig | OrpoConfig | SimpoConfig | CpoConfig
"""Methods that learn from rankings."""

PreferenceConfig = Annotated[PairConfig | KtoConfig, Field(discriminator="method")]
"""Any offline method."""

SOFT_LABELS = ("dpo", "ipo")
"""Methods whose formula has a place for P(first answer is better)."""

WITHOUT_REFERENCE = ("orpo", "simpo", "cpo")
"""Methods that compare with no reference model."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    batch: Batch
    rankings: list[Ranking]
    reference: Tensor | None


# Pairs ------------------------------------------------------------------------------------


def train_preference(
    policy: Role,
    rankings: Sequence[Ranking],
    config: PairConfig,
    *,
    reference: Sequence[Sequence[float]] | None,
    seed: int,
    session: Session | None = None,
) -> None:
    """Train ``policy`` in place on rankings.

    Args:
        policy: starts at the reference's weights.
        rankings: from :func:`~trimtab.trainers.encode_preferences`; margins belong to reward models and are not used.
        config: the method and its settings.
        reference: log ref of every answer of every ranking, nats, from :func:`answer_logprobs`; None for the methods
            that have no reference.
        seed: order of the rankings and dropout.
        session: logging, checkpoints, stopping; None: silent, keeps nothing.

    Raises:
        ConfigError: soft labels for a method whose formula has none.
        DataError: no ranking has a better and a worse answer.
        NonFiniteError: the loss became NaN or infinite.
    """
    usable = _usable(rankings, config, reference)
    ranked = [rankings[i] for i in usable]
    of = {id(r): None if reference is None else reference[i] for r, i in zip(ranked, usable, strict=True)}
    cache = fill_lower_cache(
        policy,
        ranked,
        passes=config.epochs,
        cache_mb=config.cache_mb,
        micro_batch_tokens=config.micro_batch_tokens,
    )

    def parts(chosen: list[Ranking]) -> list[tuple[list[str], _Part]]:
        return _micro_batches(policy, chosen, [of[id(r)] for r in chosen], config.micro_batch_tokens)

    def loss(part: _Part, norms: Norms) -> tuple[Tensor, Metrics]:
        cache.fill(part.batch, [str(s) for r in part.rankings for s in r.sequences], policy.backbone.lower)
        return _pair_loss(policy, part, norms, config)

    _train(policy, ranked, config, lambda r: r.weight, parts, loss, seed=seed, session=session)


@torch.no_grad()
def evaluate_preference(
    policy: Role,
    rankings: Sequence[Ranking],
    config: PairConfig,
    *,
    reference: Sequence[Sequence[float]] | None,
) -> Metrics:
    """The training objective and its metrics on rankings that were not trained on; empty if none has a strict pair."""
    try:
        usable = _usable(rankings, config, reference)
    except DataError:
        return {}
    ranked = [rankings[i] for i in usable]
    known = [None if reference is None else reference[i] for i in usable]
    norms = Norms(tokens=0, sequences=sum(r.weight for r in ranked))
    total: Metrics = {"loss": 0.0}
    for _, part in _micro_batches(policy, ranked, known, config.micro_batch_tokens):
        value, shares = _pair_loss(policy, part, norms, config)
        for name, share in {"loss": float(value), **shares}.items():
            total[name] = total.get(name, 0.0) + share
    return total


@torch.no_grad()
def answer_logprobs(role: Role, rankings: Sequence[Ranking], *, token_budget: int = PASS_TOKENS) -> list[list[float]]:
    """Log-probability of every answer of every ranking, summed over its response tokens, in nats."""
    flat = [s for r in rankings for s in r.sequences]
    if not flat:
        return []
    sums = torch.empty(len(flat))
    batch = collate(flat, _masks(rankings), role.backbone.device, prompt_lengths=_prompt_lengths(rankings))
    for index, part in batch.micro_batches(token_budget):
        sums[index.cpu()] = role.logprobs(part).sum(dim=1).float().cpu()
    values = iter(sums.tolist())
    return [[next(values) for _ in r.sequences] for r in rankings]


def reference_logprobs(
    role: Role, rankings: Sequence[Ranking], folder: Path | None, *, token_budget: int = PASS_TOKENS
) -> list[list[float]]:
    """:func:`answer_logprobs` of the reference, kept in ``folder`` under a name made from content.

    The name hashes the reference's weights and all tokens, so another model or other data never reads it.
    """
    if folder is None:
        return answer_logprobs(role, rankings, token_budget=token_budget)
    digest = hashlib.sha256()
    weights = {
        k.replace(".base_layer", ""): w for k, w in role.backbone.model.state_dict().items() if ".lora_" not in k
    }
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].detach().cpu().contiguous().numpy().tobytes())
    for ranking in rankings:
        digest.update(str((ranking.prompt_length, ranking.sequences)).encode())
    path = folder / f"reference-{digest.hexdigest()[:16]}.safetensors"
    if not path.exists():
        values = answer_logprobs(role, rankings, token_budget=token_budget)
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(path, {"logprobs": torch.tensor([v for row in values for v in row], dtype=torch.float64)})
    flat = iter(load_tensors(path)["logprobs"].tolist())
    return [[next(flat) for _ in r.sequences] for r in rankings]


def _pair_loss(policy: Role, part: _Part, norms: Norms, config: PairConfig) -> tuple[Tensor, Metrics]:
    """The part's share of the loss, and of the metrics of its pairs (weighted like the loss)."""
    sums = masked_sum(policy.logprobs(part.batch), part.batch.response_mask, dim=1)
    lengths = part.batch.response_mask.sum(dim=1).to(sums.dtype)
    pairs, weights, probabilities = [], [], []
    start = 0
    for ranking in part.rankings:
        soft, found = ranking.probability, ranking.pairs()
        pairs.append(found + start)
        weights += [ranking.weight / len(found) / norms.sequences] * len(found)
        probabilities += [1.0 if soft is None else soft] * len(found)
        start += len(ranking.sequences)
    index = torch.cat(pairs).to(sums.device)
    better, worse = index[:, 0], index[:, 1]
    weight, probability = sums.new_tensor(weights), sums.new_tensor(probabilities)
    chosen, rejected = sums[better], sums[worse]
    reference = torch.zeros_like(sums) if part.reference is None else part.reference.to(sums)
    ref = {"ref_chosen": reference[better], "ref_rejected": reference[worse]}
    size = {"chosen_lengths": lengths[better], "rejected_lengths": lengths[worse]}
    match config:
        case DpoConfig():
            certain = all(p == 1.0 for p in probabilities)
            losses = dpo_loss(
                chosen,
                rejected,
                **ref,
                beta=config.beta,
                label_smoothing=config.label_smoothing,
                smoothing=config.smoothing,
                probability=None if certain else probability,
            )
        case IpoConfig():
            losses = ipo_loss(chosen, rejected, **ref, tau=config.tau, probability=probability)
        case HingeConfig():
            losses = hinge_loss(chosen, rejected, **ref, beta=config.beta)
        case OrpoConfig():
            losses = orpo_loss(chosen, rejected, **size, lam=config.lam)
        case SimpoConfig():
            losses = simpo_loss(chosen, rejected, **size, beta=config.beta, gamma=config.gamma)
        case CpoConfig():
            averaged = size["chosen_lengths"] if config.nll == "mean" else None
            losses = cpo_loss(chosen, rejected, beta=config.beta, alpha=config.alpha, chosen_lengths=averaged)
    with torch.no_grad():
        if config.method == "simpo" or config.method == "orpo":
            gap = chosen / size["chosen_lengths"] - rejected / size["rejected_lengths"]
        else:
            gap = chosen - rejected - (ref["ref_chosen"] - ref["ref_rejected"])
        right = torch.where(probability < 0.5, gap < 0, gap > 0).to(sums.dtype)
        metrics = {
            "accuracy": float((weight * right).sum()),
            "gap": float((weight * gap).sum()),
            "chosen": float((weight * (chosen - ref["ref_chosen"])).sum()),
            "rejected": float((weight * (rejected - ref["ref_rejected"])).sum()),
        }
    return (weight * losses).sum(), metrics


def _usable(rankings: Sequence[Ranking], config: PairConfig, reference: Sequence[Sequence[float]] | None) -> list[int]:
    """Places of the rankings that hold a strict pair, after the checks that concern all of them."""
    if (reference is None) != (config.method in WITHOUT_REFERENCE):
        wanted = "takes no reference log-probabilities" if reference is not None else "needs them (answer_logprobs)"
        raise ConfigError(f"align.method {config.method!r} {wanted}")
    soft = [r.id for r in rankings if r.probability is not None]
    if soft and config.method not in SOFT_LABELS:
        raise ConfigError(
            f"{len(soft)} of {len(rankings)} preferences carry soft labels (first: {soft[0]}), which {config.method!r} "
            f"has no formula for; use align.method {' or '.join(SOFT_LABELS)}, or aggregate to certain ranks"
        )
    if soft and isinstance(config, DpoConfig) and config.label_smoothing:
        raise ConfigError("align.label_smoothing and soft labels both say how sure a label is; set label_smoothing: 0")
    usable = [i for i, r in enumerate(rankings) if len(r.pairs())]
    if not usable:
        raise DataError(
            f"none of the {len(rankings)} preferences has a better and a different, worse answer, so there is nothing "
            "to learn; check the labels with `trimtab data check`"
        )
    return usable


def _masks(rankings: Sequence[Ranking]) -> list[list[bool]]:
    return [[False] * r.prompt_length + [True] * (len(s) - r.prompt_length) for r in rankings for s in r.sequences]


def _prompt_lengths(rankings: Sequence[Ranking]) -> list[int]:
    return [r.prompt_length for r in rankings for _ in r.sequences]


def _micro_batches(
    policy: Role, chosen: Sequence[Ranking], reference: Sequence[Sequence[float] | None], token_budget: int
) -> list[tuple[list[str], _Part]]:
    """Whole rankings of similar size, up to the token budget; a prompt counts once."""
    parts = []
    for group in parts_of_like_size([packed_size(r) for r in chosen], token_budget):
        rankings = [chosen[i] for i in group]
        batch = collate(
            [s for r in rankings for s in r.sequences],
            _masks(rankings),
            policy.backbone.device,
            prompt_lengths=_prompt_lengths(rankings),
        )
        known = [v for i in group for v in (reference[i] or ())]
        parts.append(
            (
                [r.id for r in rankings],
                _Part(batch=batch, rankings=rankings, reference=torch.tensor(known) if known else None),
            )
        )
    return parts


# Single answers ---------------------------------------------------------------------------


def judged_from_rankings(rankings: Sequence[Ranking]) -> tuple[list[Judged], int]:
    """Answers that win more of their pairs than they lose are liked, the others not; balanced ones are counted."""
    found, balanced = [], 0
    for ranking in rankings:
        pairs = ranking.pairs().tolist()
        if ranking.probability is not None and ranking.probability <= 0.5:
            pairs = [[b, a] for a, b in pairs if ranking.probability < 0.5]
        for number, sequence in enumerate(ranking.sequences):
            wins, losses = sum(a == number for a, _ in pairs), sum(b == number for _, b in pairs)
            if wins == losses:
                balanced += 1
                continue
            found.append(
                Judged(
                    id=f"{ranking.id}/{number}",
                    prompt=sequence[: ranking.prompt_length],
                    answer=sequence[ranking.prompt_length :],
                    desirable=wins > losses,
                    weight=ranking.weight,
                )
            )
    return found, balanced


def encode_ratings(chat: Chat, ratings: Sequence[Rating]) -> tuple[list[Judged], dict[str, Any]]:
    """Thumbs as tokens, and those left out: how many are ``too_long``, and why others are ``unrendered``, by id."""
    judged: list[Judged] = []
    left_out: dict[str, Any] = {"too_long": 0, "unrendered": {}}
    for rating in ratings:
        asked, answer = rating.prompt.messages, rating.completion
        try:
            prompt = chat.prompt(asked)
            encoded = chat.answer(asked, answer.text, answer.finish_reason)
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
        reference: frozen; run once on every answer, and in each step on its mismatched ones.
        answers: liked and disliked ones.
        config: settings.
        seed: order of the answers and dropout.
        session: logging, checkpoints, stopping; None: silent, keeps nothing.

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
    point: dict[str, Tensor] = {}
    cache = LowerCache(config.cache_mb)
    known = _reference_of(policy, reference, answers, cache, config.micro_batch_tokens)

    def parts(chosen: list[Judged]) -> list[tuple[list[str], tuple[Batch, list[Judged]]]]:
        point["z"] = _reference_point(policy, reference, chosen, config.micro_batch_tokens)
        return _judged_batches(policy, chosen, config.micro_batch_tokens)

    def loss(part: tuple[Batch, list[Judged]], norms: Norms) -> tuple[Tensor, Metrics]:
        if policy.backbone is reference.backbone:  # as where the cache was filled
            cache.fill(part[0], [_key(a) for a in part[1]], policy.backbone.lower)
        return _judged_loss(policy, *part, known, point["z"], norms, config)

    _train(policy, list(answers), config, lambda a: a.weight, parts, loss, seed=seed, session=session)


@torch.no_grad()
def evaluate_kto(policy: Role, reference: Role, answers: Sequence[Judged], config: KtoConfig) -> Metrics:
    """The training objective and its metrics on answers that were not trained on; empty if there are fewer than two."""
    if len(answers) < 2:
        return {}
    point = _reference_point(policy, reference, answers, config.micro_batch_tokens)
    known = _reference_of(policy, reference, answers, LowerCache(0.0), config.micro_batch_tokens)
    norms = Norms(tokens=0, sequences=sum(a.weight for a in answers))
    total: Metrics = {"loss": 0.0}
    for _, (batch, part) in _judged_batches(policy, answers, config.micro_batch_tokens):
        value, shares = _judged_loss(policy, batch, part, known, point, norms, config)
        for name, share in {"loss": float(value), **shares}.items():
            total[name] = total.get(name, 0.0) + share
    return total


@torch.no_grad()
def _reference_of(
    policy: Role, reference: Role, answers: Sequence[Judged], cache: LowerCache, token_budget: int
) -> dict[str, float]:
    """Log-probability of every answer under the reference, nats, by :func:`_key`; fills ``cache`` on the way.

    Before the first step and always in the same batches, for a continued run to read the same bits.
    """
    known: dict[str, float] = {}
    for _, (batch, part) in _judged_batches(policy, answers, token_budget):
        if policy.backbone is reference.backbone:
            cache.fill(batch, [_key(a) for a in part], policy.backbone.lower)
        sums = masked_sum(reference.logprobs(batch), batch.response_mask, dim=1)
        known |= zip([_key(a) for a in part], sums.tolist(), strict=True)
    return known


def _key(answer: Judged) -> str:
    return f"{answer.prompt}{answer.answer}"


def _judged_loss(
    policy: Role,
    batch: Batch,
    part: list[Judged],
    reference: dict[str, float],
    point: Tensor,
    norms: Norms,
    config: KtoConfig,
) -> tuple[Tensor, Metrics]:
    sums = masked_sum(policy.logprobs(batch), batch.response_mask, dim=1)
    known = sums.new_tensor([reference[_key(a)] for a in part])
    liked = torch.tensor([a.desirable for a in part], device=sums.device)
    weight = sums.new_tensor([a.weight for a in part]) / norms.sequences
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
def _reference_point(policy: Role, reference: Role, chosen: Sequence[Judged], token_budget: int) -> Tensor:
    """Z from every answer put under the next one's prompt; those that exceed the context are left out."""
    context = policy.backbone.chat.context
    moved = [(chosen[(i + 1) % len(chosen)].prompt, a.answer) for i, a in enumerate(chosen)]
    fitting = [(p, a) for p, a in moved if len(p) + len(a) <= context]
    device = policy.backbone.device
    if not fitting or len(chosen) == 1:  # alone, an answer has no other prompt to be put under
        return torch.zeros((), device=device)
    batch = collate([p + a for p, a in fitting], [[False] * len(p) + [True] * len(a) for p, a in fitting], device)
    sums = torch.empty(2, len(fitting), device=device)
    for index, part in batch.micro_batches(token_budget):
        lower = policy.backbone.lower(part) if policy.backbone is reference.backbone else None
        if lower is not None:
            part.columns["lower"] = lower
        for row, role in enumerate((policy, reference)):
            sums[row, index] = role.logprobs(part).sum(dim=1)
    return kto_reference_point(sums[0], sums[1])


def _judged_batches(
    policy: Role, chosen: Sequence[Judged], token_budget: int
) -> list[tuple[list[str], tuple[Batch, list[Judged]]]]:
    batch = collate(
        [a.prompt + a.answer for a in chosen],
        [[False] * len(a.prompt) + [True] * len(a.answer) for a in chosen],
        policy.backbone.device,
        prompt_lengths=[len(a.prompt) for a in chosen],
    )
    return [
        ([chosen[i].id for i in index.tolist()], (part, [chosen[i] for i in index.tolist()]))
        for index, part in batch.micro_batches(token_budget)
    ]


# The loop ---------------------------------------------------------------------------------


P = TypeVar("P")


def _train(
    policy: Role,
    items: list[T],
    config: OfflineConfig,
    weight: Callable[[T], float],
    parts: Callable[[list[T]], list[tuple[list[str], P]]],
    loss: Callable[[P, Norms], tuple[Tensor, Metrics]],
    *,
    seed: int,
    session: Session | None,
) -> None:
    session = session or Session()
    total = max(1, round(-(-len(items) // config.batch) * config.epochs))
    learner = Learner(policy, with_lr(config.optimizer, "preference", policy), total)
    done = session.checkpoints.restore({"policy": learner})[0] if session.checkpoints else 0
    session.planned(done, total)
    for step in range(done, total):
        seed_step(seed, "align", step)
        chosen = [items[i] for i in step_indices(len(items), config.batch, step, seed)]
        norms = Norms(tokens=0, sequences=sum(weight(item) for item in chosen))
        metrics = learner.step(parts(chosen), loss, norms)
        session.log({"step": step + 1, **metrics})
        session.after_step(step + 1, total, lambda c, s=step + 1: c.save(s, {"policy": learner}))
