"""The least a step can cost: counted operations and bytes against the machine's measured peaks.

What is counted is what the mathematics needs, on real tokens, with any implementation: no padding, prompts that answers
share once, what all sequences begin with (a template's system message) once, the vocabulary at response tokens only,
no pass twice, no recomputation. A multiplication and an addition are two operations. Per token of a sequence, with P
weights in a layer's matrices, d = heads × head size, t tokens before it and itself:

    forward   2·P + 4·d·t  in each layer,  2·H·V where the vocabulary is projected
    backward  twice that if all weights are trained; once, and the adapters' part, if they are not

Bytes are those that cannot be avoided: all weights once per decoded position, and 28 bytes per trained weight and
optimiser step (AdamW reads weight, gradient and two moments and writes three of them, four bytes each). A phase takes
at least the larger of operations over peak and bytes over bandwidth. ``python -m benchmarks.floors`` measures both.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.workloads import Workload

RANK = 16
"""Of the adapters, as in :class:`trimtab.models.AdapterConfig`."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a Llama-like model."""

    layers: int
    width: int
    heads: int
    key_heads: int
    head_size: int
    inner: int
    vocabulary: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Shape":
        """From a Hugging Face ``config.json``."""
        width, heads = config["hidden_size"], config["num_attention_heads"]
        return cls(
            layers=config["num_hidden_layers"],
            width=width,
            heads=heads,
            key_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or width // heads,
            inner=config["intermediate_size"],
            vocabulary=config["vocab_size"],
        )

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """In and out of each linear map of a layer."""
        q, k = self.heads * self.head_size, self.key_heads * self.head_size
        attention = [(self.width, q), (self.width, k), (self.width, k), (q, self.width)]
        return [*attention, (self.width, self.inner), (self.width, self.inner), (self.inner, self.width)]

    @property
    def layer_weights(self) -> int:
        """P."""
        return sum(i * o for i, o in self.matrices)

    @property
    def adapter_weights(self) -> int:
        """Of one layer's adapters."""
        return sum(RANK * (i + o) for i, o in self.matrices)

    @property
    def weights(self) -> int:
        """All that a forward pass multiplies with, the head included."""
        return self.layers * self.layer_weights + self.width * self.vocabulary


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One part of a step."""

    name: str
    """What happens in it."""
    operations: float
    """Additions and multiplications."""
    bytes: float = 0.0
    """That must move between memory and processor."""

    def seconds(self, peak: float, bandwidth: float) -> float:
        """At least so many, at ``peak`` operations and ``bandwidth`` bytes a second."""
        return max(self.operations / peak, self.bytes / bandwidth)


def count(workload: Workload, batch: dict[str, Any], shape: Shape, *, common: bool = True) -> list[Phase]:
    """The phases of one step of a workload.

    Args:
        workload: what is done.
        batch: its rows as tokens, as :func:`benchmarks.measure.serve` writes them.
        shape: of the model.
        common: what all sequences begin with counts once; False: in each prompt, as trainers compute it.
    """
    top = shape.layers if workload.top_layers is None else workload.top_layers
    full = workload.adapter == "full"
    trained = shape.weights if full else top * shape.adapter_weights

    def passes(tokens: int, seen: int, head: int, layers: int = shape.layers) -> float:
        """One forward pass: tokens, the sum of what each sees, positions projected to the vocabulary."""
        attention = 4 * shape.heads * shape.head_size * seen
        return layers * (2 * shape.layer_weights * tokens + attention) + 2 * shape.width * shape.vocabulary * head

    def update(tokens: int, seen: int, head: int) -> float:
        """Forward and backward; only the upper layers where the others are frozen."""
        forward = passes(tokens, seen, head, top)
        return 3 * forward if full else 2 * forward + 6 * top * shape.adapter_weights * tokens

    def optimiser(models: int = 1, steps: int = 1) -> Phase:
        return Phase(name="optimiser", operations=0.0, bytes=28.0 * trained * models * steps)

    if workload.kind == "sft":
        tokens, seen, _ = _trees([(row, []) for row in batch["tokens"]], common)
        head = sum(map(sum, batch["masks"]))
        return [Phase(name="update", operations=update(tokens, seen, head)), optimiser()]
    if workload.kind in ("reward", "dpo"):
        groups = list(zip(batch["prompts"], batch["chosen"], batch["rejected"], strict=True))
        tokens, seen, head = _trees([(p, [len(c), len(r)]) for p, c, r in groups], common)
        if workload.kind == "reward":
            return [Phase(name="update", operations=update(tokens, seen, 0)), optimiser()]
        reference = [] if workload.cached else [Phase(name="reference", operations=passes(tokens, seen, head))]
        return [*reference, Phase(name="update", operations=update(tokens, seen, head)), optimiser()]
    rows = workload.batch * workload.group
    tokens, seen, head = _trees([(p, [workload.new_tokens] * workload.group) for p in batch["prompts"]], common)
    # The last token is drawn but never fed back, so prompt and all but the last are run.
    sample = Phase(
        name="sample",
        operations=passes(
            tokens - rows, seen - sum(len(p) + workload.new_tokens for p in batch["prompts"]) * workload.group, head
        ),
        bytes=4.0 * shape.weights * workload.new_tokens,
    )
    if workload.kind == "decode":
        return [sample]
    reference = Phase(name="reference", operations=passes(tokens, seen, head))
    if workload.kind != "ppo":
        return [sample, reference, Phase(name="update", operations=update(tokens, seen, head)), optimiser()]
    # What lies below the adapters, and all that a critic on the policy's states needs, ran while answers were drawn.
    apart = not workload.shared_critic
    infer = Phase(
        name="reference, critic, reward model" if apart else "reference, reward model",
        operations=(3 if apart else 2) * passes(tokens, seen, 0, top) + 2 * shape.width * shape.vocabulary * head,
    )
    both = update(tokens, seen, head) + (update(tokens, seen, 0) if apart else 0.0)
    return [
        sample,
        infer,
        Phase(name="update", operations=workload.epochs * both),
        optimiser(models=2 if apart else 1, steps=workload.epochs),
    ]


def _trees(groups: Sequence[tuple[Sequence[int], Sequence[int]]], common: bool) -> tuple[int, int, int]:
    """Tokens, what they see in all, and answer tokens, of prompts that their answers share.

    Args:
        groups: each prompt's tokens, and the lengths of its answers.
        common: what all prompts begin with counts once.
    """
    first, last = min(list(prompt) for prompt, _ in groups), max(list(prompt) for prompt, _ in groups)
    start = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    again = len(groups) - 1 if common else 0
    tokens = sum(len(prompt) + sum(answers) for prompt, answers in groups) - again * start
    seen = sum(_triangle(0, len(p)) + sum(_triangle(len(p), a) for a in answers) for p, answers in groups)
    return tokens, seen - again * _triangle(0, start), sum(sum(answers) for _, answers in groups)


def _triangle(before: int, count: int) -> int:
    """What ``count`` tokens after ``before`` others see, themselves included."""
    return count * before + count * (count + 1) // 2


def peaks(threads: int) -> dict[str, float]:
    """This machine's best: float32 matrix product, operations a second, and copying, bytes a second."""
    import torch

    torch.set_num_threads(threads)
    size = 2048
    a, b = torch.randn(size, size), torch.randn(size, size)
    product = _best(lambda: torch.mm(a, b), 6)
    from_, to = torch.ones(1 << 26), torch.empty(1 << 26)
    copy = _best(lambda: to.copy_(from_), 6)
    return {"operations": 2 * size**3 / product, "bytes": 2 * from_.nbytes / copy}


def _best(run: Any, times: int) -> float:
    seconds = []
    for _ in range(times + 1):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


if __name__ == "__main__":
    print(json.dumps(peaks(int(sys.argv[1]) if len(sys.argv) > 1 else 1)))
