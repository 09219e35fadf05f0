"""Models with random weights at real shapes, and how time and memory are taken on an accelerator."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trimtab.models import Backbone, Chat, ModelConfig
from trimtab.models.loading import load_tokenizer
from trimtab.testing import tokenizer

SIZES: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    "0.5B": (896, 4864, 24, 14, 2, 151936, True),
    "1.5B": (1536, 8960, 28, 12, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
    "toy": (32, 64, 2, 2, 1, 512, True),
}
"""Hidden size, inner size, layers, heads, key heads, vocabulary, whether the tables are tied: Qwen2.5's."""


@dataclass(kw_only=True)
class Setup:
    """What all cells share."""

    device: torch.device
    """Where they run."""
    toy: bool
    """True: tiny models and few tokens."""
    folder: Path
    """For files."""
    peak: dict[str, float] = field(default_factory=dict)
    """Measured: ``float32`` and ``bfloat16``, operations a second, and ``bytes``, a second; filled in by the first
    cell."""

    @property
    def context(self) -> int:
        """Tokens of a sequence."""
        return 64 if self.toy else 1024

    def model(self, size: str, *, frozen: str = "bfloat16", checkpointing: bool = False) -> ModelConfig:
        """A recipe's ``model`` section for a folder with the configuration and the tokenizer of a size."""
        folder = self.folder / size
        if not folder.exists():
            hidden, inner, layers, heads, key_heads, vocabulary, tied = SIZES[size]
            folder.mkdir()
            config: dict[str, Any] = {
                "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden,
                "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
                "num_key_value_heads": key_heads, "vocab_size": vocabulary, "tie_word_embeddings": tied,
                "max_position_embeddings": 4096, "bos_token_id": None, "eos_token_id": None,
            }  # fmt: skip
            (folder / "config.json").write_text(json.dumps(config))
            tokenizer().save_pretrained(folder)
        return ModelConfig(
            name=str(folder),
            context=self.context,
            precision="bfloat16",
            frozen_precision="bfloat16" if frozen == "bfloat16" else "float32",
            gradient_checkpointing=checkpointing,
        )

    def backbone(self, config: ModelConfig) -> Backbone:
        """The trunk with random weights, made on the device; no answer ends before its last token."""
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        with torch.device(self.device):
            model = AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(config.name), dtype=torch.float32, attn_implementation="sdpa"
            ).eval()
        chat = Chat(load_tokenizer(config), context=config.context)
        chat.end_tokens = frozenset()
        return Backbone(
            model,
            chat,
            dtype=torch.bfloat16,
            frozen_dtype=getattr(torch, config.frozen_precision),
            gradient_checkpointing=config.gradient_checkpointing,
        )


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(device: torch.device, run: Callable[[], Any], *, times: int = 3, warm: int = 1) -> float:
    """The shortest of a few runs."""
    best = float("inf")
    for number in range(warm + times):
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        if number >= warm:
            best = min(best, time.perf_counter() - started)
    return best


def forget_peak(device: torch.device) -> None:
    """Start to count the most memory anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_gb(device: torch.device) -> float:
    """The most memory that tensors held since then, in 10⁹ bytes; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0
