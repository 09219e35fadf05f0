"""Answers from vLLM, through the same protocol as the local sampler.

vLLM has its own kernels, so the log-probabilities it reports differ slightly from the trainer's. Online methods with a
clipped ratio correct for that (``align.importance_cap``), and log the difference as ``mismatch``. A difference too
large for kernels to explain is an error: the engine does not compute with the weights that it was given.
"""

from collections.abc import Callable, Sequence

import torch

from trimtab.algos import masked_mean
from trimtab.errors import EngineError
from trimtab.models import Backbone, FrozenStates, Role, collate, scatter
from trimtab.records import Prompt, Rollout
from trimtab.rollout.drawing import answer_stream
from trimtab.rollout.protocol import SamplerConfig, ValueHead, encode_prompt, group_indices, make_rollout
from trimtab.rollout.vllm_engine import shared_engine

CHECKED = 256
"""Fewest answer tokens whose log-probabilities are recomputed in each batch."""

LIMIT_EXACT, LIMIT_ROUNDED = 0.01, 0.5
"""Largest mean difference of log-probabilities, in nats per token, that counts as rounding: in float32 on a CPU, and
elsewhere, where products are rounded more (bfloat16, TF32).

Measured on a CPU with tiny models: 0.00001 in float32, 0.02 in bfloat16. A tied head not handed over gave 11.7.
"""


class VllmSampler:
    """Samples with vLLM in this process.

    Args:
        backbone: the model whose weights, tokenizer and context are used.
        config: temperature, lengths; ``slots`` is the largest number of answers decoded at once.

    Raises:
        ConfigError: vLLM is not installed, or too old.
        ModelError: vLLM cannot run this model here.
    """

    def __init__(self, backbone: Backbone, config: SamplerConfig) -> None:
        self.backbone, self.config = backbone, config
        self._engine = shared_engine(backbone, config.slots)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        adapter: str | None,
        seed: int,
        group: int = 1,
        weight_version: int = 0,
        states: FrozenStates | None = None,
        value_head: ValueHead | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Rollout]:
        """As :meth:`trimtab.rollout.Sampler.generate`; equal seeds give equal answers as far as vLLM promises.

        vLLM shows no hidden states, so ``states`` and ``value_head`` are not used, and ``progress`` is called once.

        Raises:
            EngineError: vLLM failed, or computes with other weights than the backbone.
        """
        chat, config = self.backbone.chat, self.config
        requests: list[tuple[Prompt, int, list[int]]] = []
        for prompt, indices in zip(prompts, group_indices(prompts, group), strict=True):
            tokens = encode_prompt(chat, prompt, config)
            requests += [(prompt, index, tokens) for index in indices]
        if not requests:
            return []
        shared = {
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_tokens": config.max_new_tokens,
            "stop": list(config.stop) or None,
            "stop_token_ids": sorted(chat.end_tokens),
            "ignore_eos": True,  # the end tokens above say when an answer ends, here as in training
            "skip_special_tokens": False,  # stop strings are looked for in the same text as by the local sampler
            "logprobs": 0,  # of the drawn token only
        }
        if self._engine.closed:  # a sampler with another model or more slots replaced it
            self._engine = shared_engine(self.backbone, config.slots)
        settings = [
            shared | {"seed": answer_stream(seed, prompt.id, index).getrandbits(32)} for prompt, index, _ in requests
        ]
        with self._engine.holding(self.backbone, adapter, weight_version):
            outputs = self._engine.generate([tokens for *_, tokens in requests], settings, weight_version)
        rollouts: list[Rollout] = []
        for (prompt, index, prompt_tokens), output in zip(requests, outputs, strict=True):
            tokens = list(output.token_ids)
            rollouts.append(
                make_rollout(
                    chat,
                    config,
                    prompt,
                    index=index,
                    weight_version=weight_version,
                    prompt_tokens=prompt_tokens,
                    tokens=tokens,
                    logprobs=[step[token].logprob for step, token in zip(output.logprobs, tokens, strict=True)],
                )
            )
        self._check(rollouts, adapter, weight_version)
        if progress is not None:
            progress(len(rollouts), len(rollouts))
        return rollouts

    @torch.no_grad()
    def _check(self, rollouts: Sequence[Rollout], adapter: str | None, version: int) -> None:
        """Compare the log-probabilities of the first answers with the model's.

        Nucleus sampling raises each log-probability by up to −log top_p; the check allows for it.
        """
        checked: list[Rollout] = []
        for rollout in rollouts:
            checked.append(rollout)
            if sum(len(r.tokens) for r in checked) >= CHECKED:
                break
        batch = collate(
            [r.prompt_tokens + r.tokens for r in checked],
            [[False] * len(r.prompt_tokens) + [True] * len(r.tokens) for r in checked],
            self.backbone.device,
        )
        mask = batch.response_mask
        model = Role(self.backbone, adapter=adapter).logprobs(batch, temperature=self.config.temperature or 1.0)
        apart = float(masked_mean((model - scatter([r.logprobs for r in checked], mask)).abs(), mask))
        cut = -torch.tensor(self.config.top_p).log().item()
        exact = self.backbone.dtype == torch.float32 and self.backbone.device.type == "cpu"
        if not apart <= (LIMIT_EXACT if exact else LIMIT_ROUNDED) + cut:  # also if it is NaN
            raise EngineError(
                f"vLLM's log-probabilities differ from the model's by {apart:.2g} nats per token in answers drawn with "
                f"weights of version {version}: it computes with other weights than it was given, or computes this "
                "architecture differently; set sampler.engine: local"
            )
