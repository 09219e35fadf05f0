"""A tiny random model with a real tokenizer, and a whole recipe of seconds, made offline from nothing.

The model is random and its sentences are nonsense; what it shows is that every part fits.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from trimtab.records import Message, Prompt

Architecture = Literal["llama", "qwen2", "gpt2"]

END, START, PAD = "<|im_end|>", "<|im_start|>", "<|pad|>"

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML: the assistant's turn ends in an end token, and a line break follows it that nobody has to learn."""

WORDS = (
    "a and apple bake bird blue boat book bread bright bring calm cat clean cold cook cup day dog door easy field fish "
    "fresh friend garden give glad good grass green happy help home house how in is it keep kind lake leaf light like "
    "make milk moon morning mouse nice night old on open paint paper plant please pot rain read red river road salt "
    "sea sing sky small snow soft soup star stone sun sweet tea thank the time to tree walk warm wash water what wind "
    "window winter wood word write yellow you"
).split()
ASCII = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]  # byte-level names of the space and the line break


def sentences(count: int, *, words: int = 6, start: int = 0) -> list[str]:
    """Different sentences from :data:`WORDS`, the same on every machine."""
    picked = []
    for i in range(start, start + count):
        step, place = 7 + 2 * (i % 11), 13 * i
        picked.append(" ".join(WORDS[(place + step * k) % len(WORDS)] for k in range(words)) + ".")
    return picked


def prompts(count: int) -> list[Prompt]:
    """Different one-turn prompts."""
    return [Prompt.from_text(text) for text in sentences(count, words=4, start=1000)]


def chat_messages(user: str, assistant: str, *, system: str | None = None) -> list[Message]:
    head = [Message(role="system", content=system)] if system else []
    return [*head, Message(role="user", content=user), Message(role="assistant", content=assistant)]


@cache
def tokenizer(*, pad_is_eos: bool = False, template: str | None = TEMPLATE) -> Any:
    """Byte-level BPE trained on the sentences above; 320 tokens at most, ASCII only."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=[PAD, START, END], initial_alphabet=ASCII, show_progress=False
    )
    raw.train_from_iterator([*sentences(200), "system\n", "user\n", "assistant\n"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=END,
        pad_token=END if pad_is_eos else PAD,
        additional_special_tokens=[START],
    )
    fast.chat_template = template
    return fast


def tiny_model(
    architecture: Architecture = "llama",
    *,
    layers: int = 3,
    width: int = 32,
    vocabulary: int | None = None,
    context: int = 128,
    tied: bool = False,
    dropout: float = 0.0,
    seed: int = 0,
) -> Any:
    """A random causal language model; large enough weights that its distributions are not flat."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

    tokens = tokenizer()
    shared: dict[str, Any] = {
        "vocab_size": vocabulary or len(tokens),
        "initializer_range": 0.15,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }
    if architecture == "gpt2":
        config: Any = GPT2Config(
            n_embd=width, n_layer=layers, n_head=2, n_positions=context, attn_pdrop=dropout, embd_pdrop=dropout,
            resid_pdrop=dropout, **shared,
        )  # fmt: skip
    else:
        kind = LlamaConfig if architecture == "llama" else Qwen2Config
        config = kind(
            hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=context, **shared,
        )  # fmt: skip
        if architecture == "llama":
            config.attention_dropout = dropout
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()


def tiny_backbone(architecture: Architecture = "llama", *, pad_is_eos: bool = False, **model: Any) -> Any:
    """A random model as a trunk, in memory; arguments as for :func:`tiny_model`."""
    from trimtab.models import Backbone, Chat

    chat = Chat(tokenizer(pad_is_eos=pad_is_eos), context=model.get("context", 128))
    return Backbone(tiny_model(architecture, **model), chat)


def stir(role: Any, *, seed: int = 0, scale: float = 0.1) -> Any:
    """Move all weights of a role away from where it starts, so that its adapter is not idle; returns the role."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in role.parameters().values():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return role


def same_weights(a: Any, b: Any, *, within: float = 1e-5) -> None:
    """Assert that two roles hold the same weights, up to rounding.

    Adam divides a gradient by its own size, so where that is next to nothing rounding decides; one weight in
    a thousand may be such a one. A wrong objective moves nearly all of them.
    """
    import torch

    mine, theirs = a.state(), b.state()
    assert mine.keys() == theirs.keys()
    apart = torch.cat([(mine[name] - theirs[name]).abs().flatten() for name in mine])
    assert (apart > within).float().mean() <= 1e-3, f"{int((apart > within).sum())} of {len(apart)} weights differ"


def save_model(folder: Path, model: Any = None, *, tokens: Any = None) -> Path:
    """A folder that ``model.name`` can name."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    (tiny_model() if model is None else model).save_pretrained(folder)
    (tokenizer() if tokens is None else tokens).save_pretrained(folder)
    return folder


TOY: dict[str, Any] = {
    "name": "toy",
    "seed": 0,
    "threads": 1,
    "model": {"name": "MODEL", "context": 64},
    "data": {
        "demonstrations": "data/demonstrations.jsonl",
        "prompts": "data/prompts.jsonl",
        "heldout": "data/heldout.jsonl",
    },
    "gold": "trimtab.feedback.gold.friendly_utility",
    "sft": {
        "adapter": {"kind": "lora", "rank": 4, "alpha": 8},
        "optimizer": {"lr": 1e-2},
        "epochs": 4,
        "batch": 8,
    },
    "sample": {"prompts": 24, "answers": 3, "sampler": {"max_new_tokens": 12, "slots": 32}},
    "label": {"source": "simulated", "simulation": {"annotators": 3, "overlap": 2, "noise": 0.2}},
    "reward": {
        "adapter": {"kind": "lora", "rank": 4, "alpha": 8, "top_layers": 2},
        "optimizer": {"lr": 5e-3},
        "epochs": 4,
        "batch": 8,
    },
    "align": {
        "method": "ppo",
        "adapter": {"kind": "lora", "rank": 4, "alpha": 8, "top_layers": 2},
        "steps": 8,
        "prompts": 8,
        "sampler": {"max_new_tokens": 12, "slots": 32},
        "policy": {"lr": 2e-3, "schedule": "constant"},
        "critic": {"lr": 2e-3, "schedule": "constant"},
        "epochs": 2,
    },
    "evaluate": {"sampler": {"max_new_tokens": 12, "slots": 32}, "examples": 4},
    "checkpoint_every": 3,
}
"""Every stage there is, on a model of some ten thousand weights."""


def toy_recipe(folder: Path, **sections: Any) -> Path:
    """Write a tiny model, tiny data and a recipe with every stage into ``folder``; a run takes seconds.

    Args:
        folder: made if missing.
        sections: replace top-level sections of the recipe; None removes one. The capability check is off unless given.

    Returns:
        the path of ``recipe.yaml``; its data paths are relative to it, its model path is absolute.
    """
    (folder / "data").mkdir(parents=True, exist_ok=True)
    if not (folder / "model").exists():  # a second call changes settings only
        save_model(folder / "model")
    asked, answers = sentences(40, words=4), sentences(40, words=5, start=500)
    demonstrations = [
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
        for a, b in zip(asked, answers, strict=True)
    ]
    _jsonl(folder / "data" / "demonstrations.jsonl", demonstrations)
    _jsonl(folder / "data" / "prompts.jsonl", [{"prompt": p.text} for p in prompts(32)])
    _jsonl(folder / "data" / "heldout.jsonl", [{"prompt": text} for text in sentences(10, words=4, start=2000)])
    values = TOY | {"model": TOY["model"] | {"name": str((folder / "model").resolve())}} | sections
    path = folder / "recipe.yaml"
    kept = {k: v for k, v in values.items() if v is not None} | {"capability": sections.get("capability")}
    path.write_text(yaml.safe_dump(kept, sort_keys=False))
    return path


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
