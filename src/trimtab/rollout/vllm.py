"""Answers from vLLM, behind the same seam as the sampler in this process.

vLLM holds a copy of the weights. Before each batch it is given the policy's, adapter added, under
their Hugging Face names. What it reports as log-probabilities comes from other kernels than the
trainer's, so ratios should be corrected: set ``align.importance_cap``; the metric ``mismatch`` says
by how much the two differ.

Written against vLLM's ``LLM.generate``, ``LLM.apply_model`` and ``LLM.reset_prefix_cache``; the
tests run it with a stand-in for vLLM, not with vLLM.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from trimtab.errors import ConfigError, TooLongError
from trimtab.models import Backbone
from trimtab.records import Prompt, Rollout
from trimtab.rollout.sampler import SamplerConfig


class VllmSampler:
    """Samples with a vLLM engine on the same accelerator.

    Args:
        backbone: whose weights, tokenizer and context are used.
        config: temperature, lengths; ``slots`` is the most answers decoded at once.
        memory_share: share of the accelerator's memory that vLLM may take.

    Raises:
        ConfigError: vLLM is not installed.
    """

    def __init__(self, backbone: Backbone, config: SamplerConfig, *, memory_share: float = 0.3) -> None:
        # The engine in this process: weights are handed to it as they are, not sent to another one.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            import vllm  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigError(
                "sampler.engine is 'vllm' but vLLM is not installed; pip install 'trimtab[vllm]', or engine: local"
            ) from None
        self.backbone, self.config = backbone, config
        self._params: Callable[..., Any] = vllm.SamplingParams
        self._engine: Any = vllm.LLM(
            model=backbone.model.config._name_or_path,
            max_model_len=backbone.chat.context,
            max_num_seqs=config.slots,
            gpu_memory_utilization=memory_share,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",  # of the distribution drawn from: temperature and top_p applied
        )

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        adapter: str | None,
        seed: int,
        group: int = 1,
        weight_version: int = 0,
        progress: Callable[[int, int], None] | None = None,
        settings: Mapping[str, SamplerConfig] | None = None,
    ) -> list[Rollout]:
        """As :meth:`trimtab.rollout.LocalSampler.generate`; equal seeds give equal answers as far as vLLM promises."""
        chat = self.backbone.chat
        asked, params, first, count = [], [], [], Counter[str]()
        for prompt in prompts:
            tokens, own = chat.prompt(prompt.messages), (settings or {}).get(prompt.id, self.config)
            if len(tokens) + own.max_new_tokens > chat.context:
                raise TooLongError(
                    f"prompt {prompt.id} has {len(tokens)} tokens; with max_new_tokens {own.max_new_tokens} "
                    f"that exceeds model.context {chat.context}; raise model.context or lower max_new_tokens"
                )
            asked.append({"prompt_token_ids": tokens})
            first.append(count[prompt.id])  # a prompt given twice gets different answers
            count[prompt.id] += group
            params.append(
                self._params(
                    n=group,
                    temperature=own.temperature,
                    top_p=own.top_p,
                    max_tokens=own.max_new_tokens,
                    stop=list(own.stop) or None,
                    stop_token_ids=sorted(chat.end_tokens),
                    ignore_eos=True,  # the end tokens above say when an answer ends, here as in training
                    logprobs=0,  # of the drawn token only
                    seed=int.from_bytes(hashlib.sha256(f"{seed}|{prompt.id}|{first[-1]}".encode()).digest()[:4], "big"),
                )
            )
        if not asked:
            return []
        self._give_weights(adapter)
        found: list[Rollout] = []
        requests = self._engine.generate(asked, params, use_tqdm=False)
        for prompt, start, request in zip(prompts, first, requests, strict=True):
            own, read = (settings or {}).get(prompt.id, self.config), list(request.prompt_token_ids)
            for index, output in enumerate(request.outputs, start):
                found.append(self._rollout(prompt, read, output, index, own, weight_version))
            if progress is not None:
                progress(len(found), len(asked) * group)
        return found

    def _give_weights(self, adapter: str | None) -> None:
        with self.backbone.merged(adapter):
            weights = [(name.replace(".base_layer.", "."), p.data) for name, p in _plain(self.backbone.model)]
            self._engine.apply_model(lambda model: model.load_weights(weights))
        self._engine.reset_prefix_cache()  # keys and values of the old weights

    def _rollout(
        self, prompt: Prompt, prompt_tokens: list[int], output: Any, index: int, own: SamplerConfig, version: int
    ) -> Rollout:
        tokens = list(output.token_ids)
        text = self.backbone.chat.decode(tokens, strip=False)
        ending = min((place for stop in own.stop if (place := text.find(stop)) >= 0), default=None)
        return Rollout(
            id=f"{prompt.id}/{version}/{index}",
            prompt=prompt,
            prompt_tokens=prompt_tokens,
            tokens=tokens,
            logprobs=[step[token].logprob for step, token in zip(output.logprobs, tokens, strict=True)],
            text=text[:ending].strip(),
            finish_reason="stop" if tokens[-1] in self.backbone.chat.end_tokens or ending is not None else "length",
            weight_version=version,
        )


def _plain(model: Any) -> list[tuple[str, Tensor]]:
    """Weights of the trunk without adapters."""
    return [(name, p) for name, p in model.named_parameters() if ".lora_" not in name]
