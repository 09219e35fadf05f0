"""References: one that follows the policy, and log-probabilities of judged answers under a constant one."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from trimtab.errors import ConfigError
from trimtab.models import (
    PASS_TOKENS,
    MovingReference,
    ReferenceUpdateConfig,
    Role,
    load_tensors,
    save_tensors,
)
from trimtab.trainers.checkpoint import Weights
from trimtab.trainers.rankings import Ranking, by_ranking, tokens_of_rankings


@runtime_checkable
class MovingWeights(Weights, Protocol):
    """The weights of a reference that follows the policy."""

    def update(self, alpha: float) -> None:
        """Move the reference: ref ← α·θ + (1 − α)·ref."""
        ...


def moving_reference(reference: Any, policy: Role, config: ReferenceUpdateConfig | None) -> Any:
    """The reference that follows the policy as ``config`` says; None if ``config`` is None.

    A reference that can already move is returned unchanged.
    """
    if config is None or isinstance(reference, MovingWeights):
        return None if config is None else reference
    return MovingReference(reference, policy)


def check_reference_update(config: ReferenceUpdateConfig | None, steps: int) -> None:
    """Refuse settings with which the reference would never move.

    Raises:
        ConfigError: the first update would come after the last step.
    """
    if config is not None and config.every >= steps:
        raise ConfigError(
            f"reference_update.every is {config.every} and training has {steps} steps: the reference would not move "
            "before the last one; lower every, or leave reference_update out"
        )


@torch.no_grad()
def answer_logprobs(
    role: Role, rankings: Sequence[Ranking], *, micro_batch_tokens: int = PASS_TOKENS
) -> list[list[float]]:
    """Log-probability of every answer of every ranking, summed over response tokens, in nats."""
    if not rankings:
        return []
    batch = tokens_of_rankings(rankings, role.backbone.device)
    sums = torch.empty(batch.size)
    for index, part in batch.micro_batches(micro_batch_tokens):
        sums[index.cpu()] = role.logprobs(part).sum(dim=1).float().cpu()
    return by_ranking(sums.tolist(), rankings)


def reference_logprobs(
    role: Role, rankings: Sequence[Ranking], folder: Path | None, *, micro_batch_tokens: int = PASS_TOKENS
) -> list[list[float]]:
    """:func:`answer_logprobs` of the reference, cached in ``folder``.

    The file name is a hash of the reference's weights and all tokens, so another model or other data never reads it.
    """
    if folder is None:
        return answer_logprobs(role, rankings, micro_batch_tokens=micro_batch_tokens)
    digest = hashlib.sha256()
    weights = {
        k.replace(".base_layer", ""): w for k, w in role.backbone.model.state_dict().items() if ".lora_" not in k
    }
    for name in sorted(weights):
        values = weights[name].detach().cpu().contiguous().flatten().view(torch.uint8)  # NumPy has no bfloat16
        digest.update(name.encode() + values.numpy().tobytes())
    for ranking in rankings:
        digest.update(str((ranking.prompt_length, ranking.sequences)).encode())
    path = folder / f"reference-{digest.hexdigest()[:16]}.safetensors"
    if not path.exists():
        values = answer_logprobs(role, rankings, micro_batch_tokens=micro_batch_tokens)
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(path, {"logprobs": torch.tensor([v for row in values for v in row], dtype=torch.float64)})
    return by_ranking(load_tensors(path)["logprobs"].tolist(), rankings)
