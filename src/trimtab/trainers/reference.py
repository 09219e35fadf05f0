"""Log-probabilities of judged answers under the reference, which never changes: it is run once."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from trimtab.models import PASS_TOKENS, Role, load_tensors, save_tensors
from trimtab.trainers.rankings import Ranking, by_ranking, tokens_of_rankings


@torch.no_grad()
def answer_logprobs(
    role: Role, rankings: Sequence[Ranking], *, micro_batch_tokens: int = PASS_TOKENS
) -> list[list[float]]:
    """Log-probability of every answer of every ranking, summed over its response tokens, in nats."""
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
    """:func:`answer_logprobs` of the reference, stored in ``folder`` under a name made from the content.

    The name hashes the reference's weights and all tokens, so another model or other data never reads it.
    """
    if folder is None:
        return answer_logprobs(role, rankings, micro_batch_tokens=micro_batch_tokens)
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
        values = answer_logprobs(role, rankings, micro_batch_tokens=micro_batch_tokens)
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(path, {"logprobs": torch.tensor([v for row in values for v in row], dtype=torch.float64)})
    return by_ranking(load_tensors(path)["logprobs"].tolist(), rankings)
