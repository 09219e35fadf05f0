"""From a name in a recipe to weights and a tokenizer: hub id, local folder or the embedded default."""

import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.utils import logging as hf_logging

from trimtab.errors import ModelError
from trimtab.files import sha256_file
from trimtab.models import embedded
from trimtab.models.chat import Chat
from trimtab.models.config import ModelConfig, is_file_name
from trimtab.models.weights_check import adapter_base, base_of, is_hub_id, load_weights, reason_of

_log = logging.getLogger(__name__)

_POINTER = b"version https://git-lfs"

hf_logging.set_verbosity_error()
hf_logging.disable_progress_bar()


def resolve(name: str) -> str:
    """The folder of the embedded default, a path with ``~`` expanded, or another name unchanged."""
    if name == embedded.NAME:
        return str(embedded.embedded_folder())
    return os.path.expanduser(name)


def described_by(name: str) -> str:
    """The folder or hub id that holds a model's config.json: for an adapter, its base.

    Raises:
        ModelError: as :func:`~trimtab.models.weights_check.adapter_base`.
    """
    place = resolve(name)
    return adapter_base(place) or place


def model_identity(config: ModelConfig) -> dict[str, Any]:
    """Identity of a model for fingerprints.

    A local folder is identified by the content of its files (weights, tokenizer, template, configuration) and, if it
    contains an adapter, of the folder of the adapter's base. Any other model is identified by its name. The text of
    ``chat_template`` is part of both.
    """
    folder = Path(config.name)
    identity: dict[str, Any] = {"name": config.name}
    if folder.is_dir():
        identity = {"files": {f.name: _digest(f) for f in sorted(folder.iterdir()) if f.is_file()}}
        base = base_of(folder)
        if base is not None and not (Path(base) / "adapter_config.json").is_file():  # an adapter as base never loads
            identity["base"] = model_identity(ModelConfig(name=base))
    if config.chat_template is not None:
        identity["chat_template"] = _template(config.chat_template)
    return identity


def _digest(file: Path) -> str:
    """SHA-256 of a file, cached as long as the file does not change."""
    stat = file.stat()
    return _known_digest(file.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


@cache
def _known_digest(file: Path, *_: int) -> str:
    return sha256_file(file)


def _template(setting: str) -> str:
    """The chat template that a setting contains or names by its file.

    Raises:
        ModelError: it names a file that cannot be read.
    """
    if not is_file_name(setting):
        return setting
    try:
        return Path(setting).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"model.chat_template: {setting!r} is neither a file nor a Jinja template ({reason_of(error)}); give the "
            "path of a UTF-8 file, or the template itself"
        ) from None


def load_tokenizer(config: ModelConfig) -> Any:
    """The tokenizer with a chat template.

    Raises:
        ModelError: there is no tokenizer, no chat template or no end-of-turn token.
    """
    name = resolve(config.name)
    _check_exists(config.name, name)
    base = adapter_base(name)
    if base is not None and not (Path(name) / "tokenizer_config.json").is_file():
        name = base
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:
        _check_files(name, config.name)
        raise ModelError(
            f"{config.name}: no usable tokenizer ({reason_of(error)}); a model folder needs tokenizer.json and "
            "tokenizer_config.json next to config.json"
        ) from error
    if config.chat_template is not None:
        tokenizer.chat_template = _template(config.chat_template)
    if not tokenizer.chat_template:
        raise ModelError(
            f"{config.name}: the tokenizer has no chat template, so turns cannot be told apart; set "
            "model.chat_template to a Jinja template or a file that holds one"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{config.name}: the tokenizer has no eos token, so an answer could never end")
    return tokenizer


def load_chat(config: ModelConfig) -> Chat:
    """How a model's conversations are rendered; reads its tokenizer and its generation config, not its weights.

    Raises:
        ModelError: as :func:`load_tokenizer`, or the folder has no readable config.json.
    """
    tokenizer, name = load_tokenizer(config), described_by(config.name)
    try:
        generation = GenerationConfig.from_pretrained(name)
    except Exception as fault:
        if (Path(name) / "generation_config.json").is_file():
            raise ModelError(
                f"{config.name}: generation_config.json cannot be read ({reason_of(fault)}), and it may name further "
                "tokens that end a turn; mend or remove it"
            ) from fault
        try:
            generation = GenerationConfig.from_model_config(AutoConfig.from_pretrained(name))
        except Exception as error:
            raise ModelError(f"{config.name}: its configuration cannot be read ({reason_of(error)})") from error
    ends = generation.eos_token_id
    extra = [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [ends]
    if (other := next((end for end in extra if type(end) is not int), None)) is not None:
        raise ModelError(
            f"{config.name}: eos_token_id in generation_config.json or config.json names {other!r}, which is no token "
            "id; expected a whole number or a list of them"
        )
    if "strftime_now" in str(tokenizer.chat_template):
        _log.warning(
            "%s: the chat template can write the date of the day into prompts, so the same data give other tokens on "
            "another day; set model.chat_template to a copy with a fixed date if that matters",
            config.name,
        )
    extra = [end for end in extra if end >= 0]  # some configurations write -1 for none
    return Chat(tokenizer, context=config.context, system=config.system, extra_end_tokens=extra)


def load_causal_lm(config: ModelConfig) -> Any:
    """The model in float32 on its device, dropout off, ready to be a trunk.

    Raises:
        ModelError: it does not exist, or is not a causal language model.
    """
    name = resolve(config.name)
    _check_exists(config.name, name)
    try:
        model = load_weights(name, config.name)
    except ModelError:
        raise
    except Exception as error:
        _check_files(name, config.name)
        raise ModelError(
            f"{config.name}: cannot be loaded as a causal language model ({reason_of(error)}); give a folder with "
            "config.json and *.safetensors, a hub id that this machine can reach, or the default "
            f"{embedded.NAME!r}"
        ) from error
    limit = _limit(model.config)
    if limit is not None and config.context > limit:
        raise ModelError(f"model.context is {config.context} tokens but {config.name} was built for {limit}; lower it")
    selected = _selected(model.config)
    if selected is not None and config.context > selected:
        raise ModelError(
            f"model.context is {config.context} tokens but {config.name} attends to the {selected} of highest score in "
            f"longer rows, where rounding changes which ones they are; set model.context to at most {selected}"
        )
    # Own, aligned memory: results must not depend on where a file was mapped (bit-exact resume).
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
    placed: Any = model
    return placed.to(pick_device(config.device)).eval()


def check_vocabulary(model: Any, tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer with tokens that the model does not have.

    Raises:
        ModelError: the highest token is beyond the embedding or the head.
    """
    highest = max(tokenizer.get_vocab().values())
    rows = min(len(model.get_input_embeddings().weight), len(model.get_output_embeddings().weight))
    if highest >= rows:
        raise ModelError(
            f"{name}: its tokenizer makes tokens up to {highest} but the model has {rows} (0 to {rows - 1}); use the "
            "tokenizer that the model was trained with, or call model.resize_token_embeddings in transformers and save"
        )


def _limit(config: Any) -> int | None:
    """Number of tokens that a model was built for, from its text model; None: its configuration does not say.

    Rotary frequencies that change beyond the original length (dynamic NTK, LongRoPE) make a token's states depend on
    the length of its row, so the limit is the original length.
    """
    text = config.get_text_config()
    names = ("max_position_embeddings", "max_seq_len", "n_positions")
    limit = next((n for n in (getattr(text, name, None) for name in names) if isinstance(n, int)), None)
    rope: Any = getattr(text, "rope_parameters", None) or {}
    originals = [
        part.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None)
        for part in (rope, *rope.values())  # some models have one for each type of layer
        if isinstance(part, dict) and part.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(filter(None, [limit, *originals]), default=None)


def _selected(config: Any) -> int | None:
    """Number of tokens that sparse layers select by score in longer rows; None: no layer selects."""
    text = config.get_text_config()
    sizes = [getattr(text, name, None) for name in ("index_topk", "keep_window_size", "indexer_budget")]
    blocks, length = getattr(text, "index_topk_blocks", None), getattr(text, "index_block_size", None)
    sizes.append(blocks * length if type(blocks) is int and type(length) is int else None)
    return min((size for size in sizes if type(size) is int and size > 0), default=None)


def longest_context(name: str) -> int | None:
    """Number of tokens that a model was built for; None: its configuration does not say.

    Raises:
        ModelError: there is no such model.
    """
    _check_exists(name, resolve(name))
    try:
        config = AutoConfig.from_pretrained(described_by(name))
        return min(filter(None, [_limit(config), _selected(config)]), default=None)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{name}: its configuration cannot be read ({reason_of(error)})") from error


def pick_device(name: str) -> torch.device:
    """The device that a configuration names.

    Raises:
        ModelError: ``cuda`` is set but there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("model.device is 'cuda' but torch sees no accelerator; use 'auto' or 'cpu'")
    return torch.device(name)


def compute_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """Precision of matrix products on this device."""
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32


def _check_files(name: str, given: str) -> None:
    """Report what is wrong with a folder's files, if that is more specific than the loader's message.

    Raises:
        ModelError: a file is a Git LFS pointer, or config.json cannot be read.
    """
    folder = Path(name)
    base = base_of(folder)
    for file in sorted([*folder.glob("*"), *(Path(base).glob("*") if base is not None else ())]):
        if file.is_file() and file.stat().st_size < 1000 and file.read_bytes().startswith(_POINTER):
            raise ModelError(
                f"{given}: {file.name} is a pointer of Git LFS and not the file itself; run `git lfs pull` in "
                f"{file.parent}, or download the file"
            )
    if (folder / "config.json").is_file():
        try:
            AutoConfig.from_pretrained(name, trust_remote_code=False)
        except Exception as error:
            raise ModelError(f"{given}: config.json cannot be used ({reason_of(error)}); correct it") from error


def _check_exists(given: str, name: str) -> None:
    if not Path(name).is_dir() and not is_hub_id(name):
        raise ModelError(
            f"model.name {given!r} is not a folder here and not a hub id (owner/name); the built-in default is "
            f"{embedded.NAME!r}"
        )
