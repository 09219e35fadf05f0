"""A tiny random model with a real tokenizer, built offline in a second.

The model's answers are nonsense. Use it to test that parts fit, that an objective moves the weights, and that a run
resumes; it cannot show that a method teaches anything in English.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

from trimtab.records import Message, Prompt

Architecture = Literal["llama", "qwen2", "gpt2"]

END, START, PAD = "<|im_end|>", "<|im_start|>", "<|pad|>"

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML. A line break follows the end token of each turn; it belongs to no answer."""

WORDS = (
    "a and apple bake bird blue boat book bread bright bring calm cat clean cold cook cup day dog door easy field fish "
    "fresh friend garden give glad good grass green happy help home house how in is it keep kind lake leaf light like "
    "make milk moon morning mouse nice night old on open paint paper plant please pot rain read red river road salt "
    "sea sing sky small snow soft soup star stone sun sweet tea thank the time to tree walk warm wash water what wind "
    "window winter wood word write yellow you"
).split()
"""The vocabulary of :func:`sentences`."""

_ASCII = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]  # byte-level symbols for space and line break


def sentences(count: int, *, words: int = 6, start: int = 0) -> list[str]:
    """Distinct sentences made of :data:`WORDS`, the same on every machine.

    Args:
        count: number of sentences.
        words: words in each.
        start: number of the first sentence; calls with disjoint ranges give different sentences.
    """
    made = []
    for i in range(start, start + count):
        step, first = 7 + 2 * (i % 11), 13 * i
        made.append(" ".join(WORDS[(first + step * k) % len(WORDS)] for k in range(words)) + ".")
    return made


def prompts(count: int) -> list[Prompt]:
    """Distinct one-turn prompts."""
    return [Prompt.from_text(text) for text in sentences(count, words=4, start=1000)]


def chat_messages(user: str, assistant: str, *, system: str | None = None) -> list[Message]:
    """A conversation of one question and one answer, with an optional system message in front."""
    head = [Message(role="system", content=system)] if system else []
    return [*head, Message(role="user", content=user), Message(role="assistant", content=assistant)]


@cache
def tokenizer(*, pad_is_eos: bool = False, template: str | None = TEMPLATE) -> Any:
    """A byte-level BPE tokenizer of at most 320 tokens, trained on :func:`sentences`; ASCII only.

    Args:
        pad_is_eos: True: padding uses the end token, as in many published tokenizers.
        template: Jinja chat template; None: a tokenizer without one.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=[PAD, START, END], initial_alphabet=_ASCII, show_progress=False
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
    """A causal language model with random weights, scaled so that its predictions are not uniform.

    Args:
        architecture: model family.
        layers: decoder layers.
        width: hidden size.
        vocabulary: number of tokens; None: that of :func:`tokenizer`.
        context: longest sequence in tokens.
        tied: True: input and output embeddings share weights.
        dropout: dropout probability in training mode.
        seed: equal seeds give equal weights.
    """
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

    tokens = tokenizer()
    spare = 8 if architecture == "qwen2" else 0  # transformers adds tokens of its own to a Qwen2 tokenizer
    shared: dict[str, Any] = {
        "vocab_size": vocabulary or len(tokens) + spare,
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
    """A random model as a :class:`~trimtab.models.Backbone`; further arguments as for :func:`tiny_model`."""
    from trimtab.models import Backbone, Chat

    chat = Chat(tokenizer(pad_is_eos=pad_is_eos), context=model.get("context", 128))
    return Backbone(tiny_model(architecture, **model), chat)


def save_model(folder: Path, model: Any = None, *, tokens: Any = None) -> Path:
    """Write a model and its tokenizer in the Hugging Face layout; a recipe's ``model.name`` can name the folder.

    Args:
        folder: where to write.
        model: None: :func:`tiny_model`.
        tokens: its tokenizer; None: :func:`tokenizer`.

    Returns:
        ``folder``.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    (tiny_model() if model is None else model).save_pretrained(folder)
    (tokenizer() if tokens is None else tokens).save_pretrained(folder)
    return folder
