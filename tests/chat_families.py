"""Small tokenizers of every kind, and chat templates in the manner of the published ones."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from trimtab.testing import sentences

WHITE = "{{ '\\n' }}"

SAY = "{% if m['role'] == 'assistant' %}{% generation %}{{ SAID }}{% endgeneration %}{% else %}{{ OTHER }}{% endif %}"


def turns(header: str, said: str, other: str, *, after: str = "", ask: str, start: str = "", last: str = "") -> str:
    """A template that appends turn by turn; arguments are Jinja expressions, ``m`` is the message."""
    body = SAY.replace("SAID", said).replace("OTHER", other)
    return (
        f"{start}{{% for m in messages %}}{{{{ {header} }}}}{body}{after}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {ask} }}}}{{% else %}}{last}{{% endif %}}"
    )


INST = (  # system text inside the first user turn; a space on both sides of an answer
    "{% if messages[0]['role'] == 'system' %}"
    "{% set sys = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set sys = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '<s>[INST] ' + (sys if loop.first else '') }}"
    "{{ m['content'].strip() + ' [/INST]' }}"
    "{% else %}{% generation %}{{ ' ' + m['content'].strip() + ' </s>' }}{% endgeneration %}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' }}{% if role == 'model' %}"
    "{% generation %}{{ m['content'] | trim + '<end_of_turn>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] | trim + '<end_of_turn>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
QWEN3 = (  # thoughts before the last user turn are gone; the last answer has one, empty if need be
    "{% set ns = namespace(last=-1) %}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' %}{% set text = m['content'] %}{% set thought = '' %}"
    "{% if '</think>' in text %}{% set thought = text.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{% if loop.index0 > ns.last %}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' + text }}"
    "{% else %}{{ text }}{% endif %}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
R1 = (  # asking opens a thought; earlier thoughts are gone
    "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|assistant|>' + m['content'].split('</think>')[-1] + '</s>' }}"
    "{% else %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A chat template and the tokens it needs."""

    template: str
    control: tuple[str, ...]
    """Control tokens; the first is eos, the second ends a turn where they differ."""
    end: str
    """What ends a turn."""
    system: bool = True
    """Takes a system turn."""
    appends: bool = True
    """Shows earlier turns unchanged."""
    marks: tuple[str, ...] = ()
    """Marks of thoughts."""


ROLE, TEXT, TRIM = "'<|' + m['role'] + '|>\\n'", "m['content']", "m['content'].strip()"
FAMILIES = {
    "chatml": Family(
        template=turns(
            "'<|im_start|>' + m['role'] + '\\n'", f"{TEXT} + '<|im_end|>'", f"{TEXT} + '<|im_end|>'", after=WHITE,
            ask="'<|im_start|>assistant\\n'",
        ),
        control=("<|im_end|>", "<|im_start|>"), end="<|im_end|>",
    ),
    "chatml_other_eos": Family(  # the end of a turn is not the tokenizer's eos
        template=turns(
            "'<|im_start|>' + m['role'] + '\\n'", f"{TEXT} + '<|im_end|>'", f"{TEXT} + '<|im_end|>'", after=WHITE,
            ask="'<|im_start|>assistant\\n'",
        ),
        control=("<|endoftext|>", "<|im_end|>", "<|im_start|>"), end="<|im_end|>",
    ),
    "llama2": Family(template=INST, control=("</s>", "<s>"), end="</s>"),
    "llama3": Family(
        template=turns(
            "'<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n'", f"{TRIM} + '<|eot_id|>'",
            f"{TRIM} + '<|eot_id|>'", start="{{ '<|begin_of_text|>' }}",
            ask="'<|start_header_id|>assistant<|end_header_id|>\\n\\n'",
        ),
        control=("<|end_of_text|>", "<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
        end="<|eot_id|>",
    ),
    "gemma": Family(
        template=GEMMA, control=("<eos>", "<end_of_turn>", "<start_of_turn>", "<bos>"), end="<end_of_turn>",
        system=False,
    ),
    "phi3": Family(  # eos follows the last turn
        template=turns(
            ROLE, f"{TEXT} + '<|end|>'", f"{TEXT} + '<|end|>'", after=WHITE, ask="'<|assistant|>\\n'",
            last="{{ '<|endoftext|>' }}",
        ),
        control=("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"), end="<|end|>",
    ),
    "cohere": Family(  # two tokens close an answer, the second is eos
        template=turns(
            "'<|start|><|' + m['role'] + '|>'", f"{TEXT} + '<|done|><|end|>'", f"{TEXT} + '<|end|>'",
            ask="'<|start|><|assistant|>'",
        ),
        control=("<|end|>", "<|start|>", "<|done|>", "<|user|>", "<|assistant|>", "<|system|>"), end="<|end|>",
    ),
    "mistral": Family(  # its markers are tokens
        template=INST, control=("</s>", "<s>", "[INST]", "[/INST]"), end="</s>"
    ),
    "zephyr": Family(  # its headers are letters
        template=turns(ROLE, f"{TEXT} + '</s>'", f"{TEXT} + '</s>'", after=WHITE, ask="'<|assistant|>\\n'"),
        control=("</s>", "<s>"), end="</s>",
    ),
    "vicuna": Family(
        template=turns(
            "{'user': 'USER: ', 'assistant': 'ASSISTANT:', 'system': ''}[m['role']]", f"' ' + {TEXT} + '</s>'",
            f"{TEXT} + ' '", ask="'ASSISTANT:'",
        ),
        control=("</s>", "<s>"), end="</s>",
    ),
    "qwen3": Family(
        template=QWEN3, control=("<|im_end|>", "<|im_start|>"), end="<|im_end|>", appends=False,
        marks=("<think>", "</think>"),
    ),
    "r1": Family(
        template=R1, control=("</s>", "<s>", "<|user|>", "<|assistant|>", "<|system|>"), end="</s>", appends=False,
        marks=("<think>", "</think>"),
    ),
    "no_end": Family(
        template=turns("m['role'] + ': '", TEXT, TEXT, after=WHITE, ask="'assistant:'").replace(
            "m['role'] + ': '", "m['role'] + ':'"
        ).replace("{{ m['content'] }}", "{{ ' ' + m['content'] }}"),
        control=("</s>",), end="</s>", appends=False,
    ),
}  # fmt: skip

KINDS = ("bytes", "llama_legacy", "metaspace_first", "unigram", "wordpiece")
CHARACTERS = [chr(code) for code in range(33, 127)]


@cache
def _base(kind: str, control: tuple[str, ...]) -> str:
    """A trained tokenizer as JSON."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    special = ["<unk>", *control]
    size = 400
    if kind == "bytes":
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet)
    elif kind in ("llama_legacy", "metaspace_first"):
        raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        if kind == "llama_legacy":
            raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        raw.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        fallback = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(
            vocab_size=size + 256, special_tokens=[*special, *fallback], initial_alphabet=[*CHARACTERS, "▁"]
        )
    elif kind == "unigram":  # its control tokens are pieces of the vocabulary, with the best score of all
        raw = Tokenizer(models.Unigram())
        raw.pre_tokenizer = pre_tokenizers.Metaspace()
        raw.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=size, special_tokens=special, unk_token="<unk>", initial_alphabet=CHARACTERS
        )
    else:
        raw = Tokenizer(models.WordPiece(unk_token="<unk>"))
        raw.normalizer = normalizers.BertNormalizer(lowercase=True)
        raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        raw.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, initial_alphabet=CHARACTERS)
    trainer.show_progress = False
    raw.train_from_iterator([*sentences(60), "system\nuser\nassistant\nmodel\n"], trainer)
    state = json.loads(raw.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]  # bytes are text
    return json.dumps(state)


@cache
def family_tokenizer(kind: str, name: str, *, special_marks: bool = False, template: str | None = None) -> Any:
    """A tokenizer of one kind with the control tokens of one family, and its template unless another is given."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    family = FAMILIES[name]
    raw = Tokenizer.from_str(_base(kind, family.control))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=family.control[0], unk_token="<unk>", clean_up_tokenization_spaces=False,
        additional_special_tokens=list(family.control[1:]),
    )  # fmt: skip
    if family.marks:
        fast.add_tokens([AddedToken(m, special=special_marks, normalized=False) for m in family.marks])
    fast.chat_template = template or family.template
    return fast


EVERY = list(itertools.product(KINDS, FAMILIES))
