"""Checks that every weight of a folder was loaded into its place; an error names those that were not.

``from_pretrained`` gives random values to weights that the files lack, and skips weights that it cannot place. The
model would then differ at every load, so both are refused here. Also refused is everything in a folder that changes
the computation but that trimtab does not apply: quantised weights, custom code, an adapter next to full weights.
"""

import json
import logging
import os
import re
import warnings
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import load_peft_weights
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from trimtab.errors import ModelError
from trimtab.models import embedded

_log = logging.getLogger(__name__)

WRAPPERS = {
    "pretrained_model.": "TRL's model with a value head; save its `pretrained_model`",
    "_orig_mod.": "a compiled model (torch.compile); save its `_orig_mod`",
    "module.": "a model in DataParallel or a similar wrapper; save its `module`",
    "base_model.model.": "a PEFT model; save the result of `merge_and_unload()`",
}
"""Prefixes of keys that a wrapper adds, and what the wrapper is."""
_PARTS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", ".base_layer.")
"""Parts that wrappers of single layers insert into keys."""

PROCESSORS = (
    "repetition_penalty no_repeat_ngram_size bad_words_ids suppress_tokens begin_suppress_tokens sequence_bias "
    "forced_bos_token_id forced_eos_token_id min_length min_new_tokens exponential_decay_length_penalty guidance_scale "
    "encoder_repetition_penalty encoder_no_repeat_ngram_size watermarking_config remove_invalid_values"
).split()
"""Settings of a generation config that change the distribution of the next token beyond temperature and nucleus."""


def load_weights(name: str, given: str) -> Any:
    """A causal language model in float32 with all of its weights; an adapter is merged into its base.

    Args:
        name: hub id or folder.
        given: the same as the user wrote it, for messages.

    Raises:
        ModelError: a weight is missing, unexpected or of another shape, or the folder contains something that trimtab
            does not apply.
        Exception: transformers' error if it finds no such model.
    """
    base = adapter_base(name)
    _check_config(base or name, given)
    _check_copies(Path(base or name), given)
    _mention_pickle(Path(base or name))
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        base or name,
        dtype=torch.float32,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that the report lists them
        return_dict=True,  # whatever config.json says about the form of outputs
        output_hidden_states=False,
        output_attentions=False,
    )
    model, info = loaded
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"{given} is an adapter on the hub; download it, and give its folder as model.name")
    check_loaded(model, info, given if base is None else base)
    _check_values(model, Path(base or name), given if base is None else base)
    if base is not None:
        model = _with_adapter(model, name, base, given)
    _mention_generation(base or name, given)
    return model


def adapter_base(name: str) -> str | None:
    """The model that an adapter folder was made for; None: the folder or hub id is not an adapter.

    Raises:
        ModelError: the folder also contains full weights, or the adapter does not name its base.
    """
    folder = Path(name)
    if not (folder / "adapter_config.json").is_file():
        return None
    if _has_weights(folder):
        raise ModelError(
            f"{name} holds full weights and an adapter (adapter_config.json), and nothing says whether the weights "
            "contain the adapter already; keep only one of the two in the folder"
        )
    base = base_of(folder)
    if base is None:
        raise ModelError(
            f"{folder / 'adapter_config.json'} does not name the model that the adapter is for; set "
            "base_model_name_or_path in it, or merge the adapter and save the model"
        )
    if (Path(base) / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder / 'adapter_config.json'} names {base!r} as the model that the adapter is for, and that is an "
            "adapter itself; merge that one first, save the model, and name it"
        )
    if not Path(base).is_dir() and not is_hub_id(base):
        raise ModelError(
            f"{folder / 'adapter_config.json'} names {base!r} as the model that the adapter is for, which is neither a "
            "folder here nor a hub id (owner/name); set base_model_name_or_path in it"
        )
    return base


def is_hub_id(name: str) -> bool:
    """Whether a name can be that of a model on the hub, ``owner/name``."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def base_of(folder: Path) -> str | None:
    """The base that an adapter names, relative to the current folder or the adapter's; None: it names none."""
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(base, str) or not base:
        return None
    if base == embedded.NAME:
        return str(embedded.embedded_folder())
    places = (Path(os.path.expanduser(base)), folder / base, folder.parent / base)
    return next((str(place) for place in places if place.is_dir()), base)


def _has_weights(folder: Path) -> bool:
    patterns = ("model*.safetensors", "pytorch_model*.bin", "model.safetensors.index.json")
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)


def _check_copies(folder: Path, given: str) -> None:
    """Refuse a folder with weights both in one file and in several.

    An index that lists only that file, or missing files, is not a second copy. Nor is a pickle, see
    :func:`_mention_pickle`.
    """
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        listed = sorted(set(index["weight_map"].values()) - {"model.safetensors"})
        others = [name for name in listed if (folder / name).is_file()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    if others and (folder / "model.safetensors").is_file():
        raise ModelError(
            f"{given} holds its weights twice, in model.safetensors and in the files that model.safetensors.index.json "
            f"lists (first: {others[0]}), and nothing says which are newer; keep only one of the two"
        )


@cache  # a run loads its model several times
def _mention_pickle(folder: Path) -> None:
    """Log which file is read, where repositories keep a pickle beside safetensors for older versions."""
    weights, pickles = (sorted(folder.glob(pattern)) for pattern in ("model*.safetensors", "pytorch_model*.bin"))
    if weights and pickles:
        _log.warning(
            "%s: holds its weights twice; model*.safetensors (files: %d) is read, as in transformers, and "
            "pytorch_model*.bin (files: %d) is not. If the latter is newer, move the safetensors files away",
            folder,
            len(weights),
            len(pickles),
        )


def _check_config(name: str, given: str) -> None:
    """Refuse custom code and quantised weights."""
    settings, _ = PreTrainedConfig.get_config_dict(name)
    kind, own = str(settings.get("model_type")), settings.get("auto_map") or {}
    code = own.get("AutoModelForCausalLM")
    native = MODEL_FOR_CAUSAL_LM_MAPPING.get(CONFIG_MAPPING[kind], None) if kind in CONFIG_MAPPING else None
    natives = native if isinstance(native, tuple) else (native,)
    if code is not None and str(code).split(".")[-1] not in {getattr(cls, "__name__", "") for cls in natives}:
        raise ModelError(
            f"{given} computes with code of its own ({code}, trust_remote_code in transformers), which trimtab does "
            "not run; use a model whose architecture is part of transformers"
        )
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    for part in (config, config.get_text_config()):
        quantised: Any = getattr(part, "quantization_config", None)
        if quantised:
            method = quantised.get("quant_method") if isinstance(quantised, dict) else type(quantised).__name__
            raise ModelError(
                f"{given} has quantised weights (quantization_config: {method}); trimtab trains float32 weights, so "
                "give the model before quantisation, or dequantise and save it"
            )


def check_loaded(model: Any, info: dict[str, Any], given: str) -> None:
    """Refuse a model whose weights did not all come from its files.

    Args:
        model: the loaded model.
        info: its loading report (``output_loading_info``).
        given: its name, for the message.

    Raises:
        ModelError: some did not; gives their number, the first key and the likely cause.
    """
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    mismatched = sorted(info["mismatched_keys"])
    faults: list[str] = []
    if missing:
        faults.append(f"{len(missing)} weights are missing from its files (first: {missing[0]!r})")
    if unexpected:
        faults.append(f"{len(unexpected)} weights in its files have no place in the model (first: {unexpected[0]!r})")
    if mismatched:
        key, given_shape, expected = mismatched[0]
        faults.append(
            f"{len(mismatched)} weights have another shape (first: {key!r} is {tuple(given_shape)}, expected "
            f"{tuple(expected)})"
        )
    if info.get("error_msgs"):
        faults.append(str(info["error_msgs"][0]).splitlines()[0])
    if faults:
        cause = _cause(model, missing, unexpected, bool(mismatched))
        raise ModelError(f"{given}: {'; '.join(faults)}. Likely cause: {cause}")


def _check_values(model: Any, folder: Path, given: str) -> None:
    """Refuse NaN and infinite weights, and integer weights, which need a scale."""
    parameters = dict(model.named_parameters())
    whole = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            whole += [k for k in stored.keys() if k in parameters and _is_whole(stored.get_slice(k).get_dtype())]
    whole += [name for name, weight in parameters.items() if name not in whole and _counts(weight)]
    if whole:
        raise ModelError(
            f"{given}: {len(whole)} weights are whole numbers (first: {whole[0]!r}), as quantised weights are; trimtab "
            "trains float32 weights, so give the model before quantisation, or dequantise and save it"
        )
    _check_finite(model, given)


def _check_finite(model: Any, given: str) -> None:
    broken = [name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]
    if broken:
        raise ModelError(
            f"{given}: {len(broken)} weights hold NaN or infinity (first: {broken[0]!r}). Likely cause: training "
            "diverged, or float16 overflowed when they were saved; give an earlier checkpoint"
        )


def _is_whole(dtype: str) -> bool:
    return dtype.startswith(("I", "U", "B")) and not dtype.startswith("BF")


def _counts(weight: torch.Tensor) -> bool:
    """Whether a matrix, from a file of any format, contains only integers, and several different ones."""
    if weight.dim() < 2 or weight.flatten()[:1000].frac().any() or weight.frac().any():
        return False
    return weight.unique().numel() > 2


def _cause(model: Any, missing: list[str], unexpected: list[str], mismatched: bool) -> str:
    for prefix, wrapper in WRAPPERS.items():
        if any(key.startswith(prefix) for key in unexpected):
            return f"the prefix {prefix!r}: the files were saved from {wrapper}"
    if missing and (inner := next((key for key in unexpected if key.endswith(f".{missing[0]}")), None)):
        return f"the prefix {inner.removesuffix(missing[0])!r}: the files were saved from a wrapper around the model"
    for part in _PARTS:
        if any(part in key for key in unexpected):
            return f"{part!r} inside the keys: the files were saved from a wrapped model; unwrap it and save it again"
    if any("lora_" in key for key in unexpected):
        return "an adapter among the weights; merge it and save the model"
    layers = model.config.get_text_config().num_hidden_layers
    extra = _layers(unexpected)
    if extra and max(extra) >= layers:
        return f"config.json says {layers} layers (num_hidden_layers) and the files hold {max(extra) + 1}"
    head = model.get_output_embeddings()
    names = {name for name, module in model.named_modules() if module is head}
    if missing and all(key.rpartition(".")[0] in names for key in missing):
        return (
            "the head is not in the files: they were saved from a model without one (AutoModel, a reward model), or "
            "tie_word_embeddings in config.json should be true"
        )
    if missing and _layers(missing) and not unexpected:
        kinds = {re.sub(r"\.\d+\.", ".*.", key, count=1) for key in missing}
        if len(_layers(missing)) == layers and len(missing) == len(kinds) * layers < len(list(model.parameters())) / 2:
            return (
                f"every layer lacks the same weights ({', '.join(sorted(kinds)[:3])}): a setting in config.json, such "
                "as one for biases, asks for weights that this model does not have, or they were left out when it was "
                "saved"
            )
        numbers = ", ".join(map(str, _layers(missing)))
        return f"a file is missing, or num_hidden_layers in config.json is too large; layers concerned: {numbers}"
    if any(re.match(r"(v_head|value_head|score|classifier)\b", key) for key in unexpected):
        return "the files are those of a reward or value model, not of a language model"
    if mismatched:
        return "sizes in config.json (vocab_size, hidden_size, …) are not those of the weights"
    return "config.json describes another model than the one that the files hold"


def _layers(keys: Iterable[str]) -> list[int]:
    """Numbers of the layers that keys belong to, in order."""
    numbers = (re.search(r"\.(\d+)\.", key) for key in keys)
    return sorted({int(number[1]) for number in numbers if number})


def _with_adapter(model: Any, folder: str, base: str, given: str) -> Any:
    """The model with a saved adapter merged in."""
    try:
        config = PeftConfig.from_pretrained(folder)
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(
            f"{given}: adapter_config.json is of a kind that the installed PEFT does not know ({reason_of(error)}); "
            "merge the adapter with the PEFT that made it, and save the model"
        ) from error
    config.base_model_name_or_path = base
    if not any((Path(folder) / f"adapter_model.{ending}").is_file() for ending in ("safetensors", "bin")):
        raise ModelError(f"{given}: the weights of its adapter are missing (adapter_model.safetensors); save it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecated names between the two libraries; missing keys are below
            adapted = PeftModel.from_pretrained(model, folder, config=config)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise ModelError(
            f"{given}: the adapter does not fit its base model ({reason_of(error)}); merge it and save the model"
        ) from error
    tuner: Any = adapted.base_model
    if not isinstance(tuner, BaseTuner):
        raise ModelError(
            f"{given}: an adapter of kind {config.peft_type} cannot be merged into the weights, so trimtab cannot "
            "start from it; use a LoRA adapter or full weights"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layers that are saved in full
        stored, expected = set(load_peft_weights(folder)), set(get_peft_model_state_dict(adapted))
    _check_adapter_keys(stored, expected, given)
    _check_finite(adapted, given)
    row = torch.arange(min(8, model.config.get_text_config().vocab_size), device=model.device)[None]
    with torch.no_grad():
        before = adapted.eval()(input_ids=row).logits
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of tied weights, which are compared below
                merged: Any = tuner.merge_and_unload()
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"{given}: the adapter cannot be merged into the weights ({reason_of(error)}); use one that can"
            ) from error
        after = merged(input_ids=row).logits
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
        raise ModelError(
            f"{given}: merging the adapter into the weights would change what it computes, as it does for an adapter "
            "on the embedding or the head of a model that uses one matrix for both; save the base with "
            "tie_word_embeddings: false and a head of its own, or use an adapter on other layers"
        )
    return merged


def _check_adapter_keys(stored: Collection[str], expected: Collection[str], given: str) -> None:
    missing, unexpected = sorted(set(expected) - set(stored)), sorted(set(stored) - set(expected))
    if missing or unexpected:
        raise ModelError(
            f"{given}: the adapter's file lacks {len(missing)} weights and holds {len(unexpected)} others (first: "
            f"{(missing or unexpected)[0]!r}); it was made for another model, or saved by another version of PEFT; "
            "merge it there and save the model"
        )


def reason_of(error: BaseException) -> str:
    """An error's message in one line: its first line, and the second if the first only introduces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:250]


def _mention_generation(name: str, given: str) -> None:
    """Log the settings of generation_config.json that trimtab does not use in sampling."""
    try:
        settings = GenerationConfig.from_pretrained(name).to_diff_dict()
    except OSError:
        return
    active = {key: settings[key] for key in PROCESSORS if settings.get(key)}
    if active.get("repetition_penalty") == 1.0:
        del active["repetition_penalty"]
    if active:
        text = ", ".join(f"{key}={value}" for key, value in active.items())
        _log.warning(
            "%s: generation_config.json sets %s; answers are drawn and scored without it, from the model's own "
            "distribution",
            given,
            text,
        )
