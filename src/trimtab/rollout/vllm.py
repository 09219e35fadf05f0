"""Answers from vLLM, by the same protocol as the sampler in this process.

vLLM holds a copy of the weights. Before each batch it receives the policy's, adapter added, under
their Hugging Face names. Its log-probabilities come from other kernels than the trainer's, so ratios
should be corrected: set ``align.importance_cap``; the metric ``mismatch`` is the difference.

Written against vLLM's ``LLM.generate``, ``LLM.apply_model`` and ``LLM.reset_prefix_cache``; the
tests run it with a stand-in for vLLM, not with vLLM.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from torch import Tensor

from trimtab.errors import ConfigError, install_hint
from trimtab.models import Backbone, FrozenStates
from trimtab.records import Prompt, Rollout
from trimtab.rollout.protocol import SamplerConfig, ValueHead, encode_prompt, make_rollout


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
        # The engine runs in this process, so that it reads the weights where they are.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            vllm: Any = import_module("vllm")  # not `import vllm`: a type checker takes that for this file
        except ImportError:
            raise ConfigError(
                f"sampler.engine is 'vllm' but vLLM is not installed; {install_hint('vllm')}, or set engine: local"
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
        states: FrozenStates | None = None,
        value_head: ValueHead | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Rollout]:
        """As :meth:`trimtab.rollout.Sampler.generate`; equal seeds give equal answers as far as vLLM promises.

        vLLM shows no hidden states, so ``states`` and ``value_head`` are not used.
        """
        chat, config = self.backbone.chat, self.config
        requests, params, first, count = [], [], [], Counter[str]()
        for prompt in prompts:
            requests.append({"prompt_token_ids": encode_prompt(chat, prompt, config)})
            first.append(count[prompt.id])  # a prompt given twice gets different answers
            count[prompt.id] += group
            params.append(
                self._params(
                    n=group,
                    temperature=config.temperature,
                    top_p=config.top_p,
                    max_tokens=config.max_new_tokens,
                    stop=list(config.stop) or None,
                    stop_token_ids=sorted(chat.end_tokens),
                    ignore_eos=True,  # the end tokens above say when an answer ends, here as in training
                    logprobs=0,  # of the drawn token only
                    seed=int.from_bytes(hashlib.sha256(f"{seed}|{prompt.id}|{first[-1]}".encode()).digest()[:4], "big"),
                )
            )
        if not requests:
            return []
        self._give_weights(adapter)
        rollouts: list[Rollout] = []
        results = self._engine.generate(requests, params, use_tqdm=False)
        for prompt, start, result in zip(prompts, first, results, strict=True):
            for index, output in enumerate(result.outputs, start):
                tokens = list(output.token_ids)
                rollouts.append(
                    make_rollout(
                        chat,
                        config,
                        prompt,
                        index=index,
                        weight_version=weight_version,
                        prompt_tokens=list(result.prompt_token_ids),
                        tokens=tokens,
                        logprobs=[step[token].logprob for step, token in zip(output.logprobs, tokens, strict=True)],
                    )
                )
            if progress is not None:
                progress(len(rollouts), len(requests) * group)
        return rollouts

    def _give_weights(self, adapter: str | None) -> None:
        with self.backbone.merged(adapter):
            weights = [(name.replace(".base_layer.", "."), p.data) for name, p in _plain(self.backbone.model)]
            self._engine.apply_model(lambda model: model.load_weights(weights))
        self._engine.reset_prefix_cache()  # keys and values of the old weights


def _plain(model: Any) -> list[tuple[str, Tensor]]:
    """Weights of the trunk without adapters."""
    return [(name, p) for name, p in model.named_parameters() if ".lora_" not in name]
