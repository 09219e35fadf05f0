"""A run's model in the Hugging Face layout, for transformers, peft, vLLM and llama.cpp.

A merged export has the pretrained weights with everything the run learned added, in float32. An adapter export has one
LoRA adapter on the pretrained model that equals SFT's and alignment's adapters together exactly. With ΔW₁ = s₁·B₁·A₁
and ΔW₂ = s₂·B₂·A₂::

    ΔW₁ + ΔW₂ = [s₁·B₁  s₂·B₂] · [A₁; A₂]        rank r₁ + r₂, scale 1

A layer that only one stage changes is padded with zeros, because vLLM reads one rank for the whole adapter. Experts are
joined one by one.

A reward model becomes a sequence classifier with one label. Such classifiers have no bias, so the reward model's bias
is left out of the weights. The config and the model card give it; differences between answers do not depend on it.
"""

import copy
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig
from transformers.pytorch_utils import Conv1D

from trimtab.errors import CheckpointError, ConfigError, ModelError
from trimtab.files import sha256_file, storage_errors, write_atomic, write_folder, write_json
from trimtab.models import AdapterConfig, Backbone, Chat, ModelConfig, Role, load_tensors, save_tensors
from trimtab.models.loading import load_chat, resolve
from trimtab.models.weights_check import adapter_base
from trimtab.pipeline.config import RunConfig, load_recipe
from trimtab.pipeline.context import Context, start_parts
from trimtab.pipeline.model_card import model_card
from trimtab.pipeline.ui import Silent
from trimtab.storage import RunFolder

Exported = Literal["sft", "policy", "reward"]
"""The models of a run that can be exported."""

STAGE_OF: dict[Exported, str] = {"sft": "sft", "policy": "align", "reward": "reward"}
"""The stage that trains each model."""

CONVERTER = "convert_hf_to_gguf.py"
"""llama.cpp's converter."""


def export_model(
    run: Path, folder: Path, *, stage: Exported = "policy", adapter: bool = False, gguf: bool = False
) -> Path:
    """Write a run's model to a new folder: weights, tokenizer with chat template, generation config, model card.

    Args:
        run: the run's folder, ``runs/NAME``, whose newest round is exported; or the folder of a round.
        folder: the new folder; must be missing or empty. It appears only when everything in it is written.
        stage: the policy, the model after SFT, or the reward model.
        adapter: True: one LoRA adapter in peft's layout; False: merged weights.
        gguf: True: also write ``model.gguf``, with llama.cpp's converter.

    Returns:
        ``folder``.

    Raises:
        ConfigError: the folder is not empty, there is no such run, the run does not train such a model or has not
            finished it, the model has no adapter, or llama.cpp's converter is not installed.
        CheckpointError: weights are damaged, or were trained on an SFT model that was trained again since.
        ModelError: the architecture has no sequence classifier, or llama.cpp cannot convert the model.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists and is not an empty folder; give a new folder to write to")
    source = _Source.open(run, stage)
    if stage == "reward" and source.config.reward is not None and source.config.reward.ensemble is not None:
        raise ConfigError(
            f"{run}: the reward is an ensemble, which no single classifier is; export a run without reward.ensemble"
        )
    if stage == "reward" and source.config.reward is not None and source.config.reward.objectives:
        raise ConfigError(
            f"{run}: the reward model has several objectives ({', '.join(source.config.reward.objectives)}), and a "
            "classifier is written with one number; train one of them alone (label.aggregate.criterion) and export that"
        )
    if adapter:
        source.check_adapters()
    if gguf and (adapter or stage == "reward"):
        raise ConfigError("--gguf converts merged language models; drop --adapter, and use --stage sft or policy")
    converter = _converter(folder) if gguf else None

    def fill(target: Path) -> None:
        if adapter:
            _write_adapter(source, target)
        else:
            _write_merged(source, target)
        write_atomic(target / "README.md", model_card(source.config, source.run, stage, adapter=adapter))
        if converter is not None:
            _convert(converter, target)

    write_folder(folder, fill)
    return folder


@dataclass(frozen=True, kw_only=True)
class _Source:
    """The finished stage that is exported."""

    run: RunFolder
    config: RunConfig
    """The configuration with which the stage was run."""
    stage: Exported

    @classmethod
    def open(cls, path: Path, stage: Exported) -> "_Source":
        """Check that the model exists, is finished, undamaged and trained on the current SFT model."""
        if not (path / "config.yaml").is_file():
            hint = (
                "give the run's folder, runs/NAME, not its recipe"
                if path.is_file()
                else "give the folder of a run, for example runs/NAME"
            )
            raise ConfigError(f"{path}: is not the folder of a run (no config.yaml in it); {hint}")
        run, name = RunFolder(path, create=False), STAGE_OF[stage]
        if stage == "sft":
            run = run.first
        elif run.number == 1:
            run = run.newest()
        stage_config = run.stage(name) / "config.yaml"
        config = load_recipe(stage_config if stage_config.is_file() else path / "config.yaml")
        trained = {"sft": config.sft, "policy": config.align, "reward": config.reward}
        if trained[stage] is None:
            available = [model for model, section in trained.items() if section is not None]
            hint = f"it has {', '.join(available)}" if available else "it trains nothing"
            raise ConfigError(f"{path}: the recipe has no section {name!r}, so there is no {stage} model; {hint}")
        needed = [name] if stage == "sft" or config.sft is None else ["sft", name]
        if stage == "reward" and config.reward is not None and config.reward.model is not None:
            needed = [name]  # a separate model
        for part in needed:
            _check_finished(run.first if part == "sft" else run, part)
        if "sft" in needed and not run.made_from(name, "sft"):
            raise CheckpointError(
                f"{path}: the {stage} model was trained on another SFT model than the one that is there now; run the "
                f"recipe up to {name!r} again"
            )
        return cls(run=run, config=config, stage=stage)

    @property
    def model(self) -> ModelConfig:
        """The pretrained model."""
        reward = self.config.reward
        return reward.model if self.stage == "reward" and reward is not None and reward.model else self.config.model

    @property
    def parts(self) -> list[tuple[str, Path, AdapterConfig]]:
        """The stages trained on the pretrained model, in order: each stage's name, folder and adapter."""
        config = self.config
        separate_model = self.stage == "reward" and config.reward is not None and config.reward.model is not None
        parts = [] if separate_model else start_parts(self.run, config)
        if self.stage == "sft":
            return parts
        section = config.align if self.stage == "policy" else config.reward
        assert section is not None, "checked by open"
        name = STAGE_OF[self.stage]
        return [*parts, (name, self.run.stage(name), section.adapter)]

    def check_adapters(self) -> None:
        """Refuse models that are not adapters.

        Raises:
            ConfigError: a stage trained all weights, or the run's model is itself an adapter.
        """
        base = adapter_base(resolve(self.model.name))
        if base is not None:
            raise ConfigError(
                f"{self.run.path}: the run's model {self.model.name} is itself an adapter, of {base}, and PEFT puts an "
                "adapter only on full weights; drop --adapter to export merged weights"
            )
        full = [name for name, _, adapter in self.parts if adapter.kind == "full"]
        if full:
            raise ConfigError(
                f"{self.run.path}: {' and '.join(full)} trained all weights (adapter.kind: full), so there is no "
                "adapter to export; drop --adapter"
            )

    def load(self) -> tuple[Backbone, Role]:
        """The trunk, and the role with its trained weights."""
        exact = {"frozen_precision": "float32"}  # sums of weights and adapters are written as they are
        config = self.config.model_copy(update={"model": self.config.model.model_copy(update=exact)})
        context = Context(config=config, recipe=self.run.path / "config.yaml", run=self.run, ui=Silent())
        if self.stage == "sft":
            trunk = context.trunk()
            return trunk, Role(trunk)
        name, folder, adapter = self.parts[-1]
        trunk = context.trunk() if len(self.parts) > 1 else Backbone.load(self.model.model_copy(update=exact))
        reward = self.config.reward if self.stage == "reward" else None
        heads = 1 if reward is None else reward.heads
        role = Role.trainable(trunk, name, adapter, seed=0, scalar_head=reward is not None, heads=heads)
        role.load_state(load_tensors(folder / "weights.safetensors"))
        return role.backbone, role


def _check_finished(run: RunFolder, name: str) -> None:
    status = run.status(name)
    if status is None or status.state != "done":
        state = "has not been run" if status is None else "is not finished"
        raise ConfigError(f"{run.path}: stage {name!r} {state}; run the recipe (`trimtab run RECIPE`) and export then")
    weights = run.stage(name) / "weights.safetensors"
    if not weights.is_file() or sha256_file(weights) != (status.outputs or {}).get(weights.name):
        raise CheckpointError(f"{weights}: missing or not as the run wrote it; delete {weights.parent} and run again")


# Merged weights ---------------------------------------------------------------------------


def _write_merged(source: _Source, target: Path) -> None:
    backbone, role = source.load()
    with backbone.merged(role.adapter):
        state = {
            name.replace(".base_layer", ""): tensor.detach().cpu().contiguous()
            for name, tensor in backbone.model.state_dict().items()
            if ".lora_" not in name
        }
    config = _plain_config(backbone.model.config)
    tokenizer = export_tokenizer(backbone.chat)
    if source.stage == "reward":
        assert role.scalar is not None
        _make_classifier(config, tokenizer, backbone.chat)
        config.reward_bias = float(role.scalar.bias.detach()[0])  # a length head is not exported
        state["score.weight"] = role.scalar.weight.detach()[:1].cpu()
        model = _with_weights(AutoModelForSequenceClassification, config, state)
    else:
        model = _with_weights(AutoModelForCausalLM, config, state)
        model.generation_config = generation_config(backbone.chat, source.config)
    with storage_errors(target):
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _plain_config(config: Any) -> Any:
    """A model's configuration without the place it was loaded from."""
    unwanted = ("quantization_config", "_name_or_path")
    cleaned = type(config).from_dict({k: v for k, v in config.to_dict().items() if k not in unwanted})
    cleaned.dtype = torch.float32
    return cleaned


def _with_weights(auto: Any, config: Any, state: dict[str, Tensor]) -> Any:
    """A model with this configuration and exactly these weights."""
    try:
        with torch.device("meta"):
            model = auto.from_config(config, dtype=torch.float32)
    except ValueError:
        kind = type(config).__name__
        raise ModelError(f"transformers has no {auto.__name__} for {kind}, so this model cannot be exported") from None
    expected = set(model.state_dict())
    missing = expected - set(state)
    if missing:
        raise ModelError(f"the exported model would lack {len(missing)} weights, for example {min(missing)!r}")
    model.load_state_dict({k: v for k, v in state.items() if k in expected}, assign=True)
    model.tie_weights()
    return model


def _make_classifier(config: Any, tokenizer: Any, chat: Chat) -> None:
    """Set one label, and a padding token that ends no turn, since transformers scores the last token before padding."""
    pad = _padding(tokenizer, chat)
    config.num_labels = 1
    config.pad_token_id = pad
    if pad is not None:
        tokenizer.pad_token_id = pad


def _padding(tokenizer: Any, chat: Chat) -> int | None:
    """A special token that never ends a turn; None: there is none, and conversations are scored one at a time."""
    used = set(chat.end_tokens)
    candidates = [tokenizer.pad_token_id, tokenizer.unk_token_id, *sorted(tokenizer.added_tokens_decoder)]
    return next((token for token in candidates if token is not None and token not in used), None)


def export_tokenizer(chat: Chat) -> Any:
    """A chat's tokenizer whose template adds the recipe's system message, as training did."""
    tokenizer = copy.deepcopy(chat.tokenizer)
    if chat.system is not None:
        text = chat.system.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
        tokenizer.chat_template = (
            "{%- if messages[0]['role'] != 'system' %}"
            f"{{%- set messages = [{{'role': 'system', 'content': '{text}'}}] + messages %}}"
            "{%- endif %}" + tokenizer.chat_template
        )
    return tokenizer


def generation_config(chat: Chat, config: RunConfig) -> GenerationConfig:
    """Tokens that end an answer, and the sampling settings of the evaluation."""
    ends = [chat.end_token, *sorted(chat.end_tokens - {chat.end_token})]
    pad = chat.tokenizer.pad_token_id
    settings: dict[str, Any] = {
        "bos_token_id": chat.tokenizer.bos_token_id,
        "eos_token_id": ends,
        "pad_token_id": chat.end_token if pad is None else pad,
    }
    sampler = None if config.evaluate is None else config.evaluate.sampler
    if sampler is not None and sampler.temperature > 0:
        settings |= {"do_sample": True, "temperature": sampler.temperature, "top_p": sampler.top_p, "top_k": 0}
    return GenerationConfig(**settings)


# One adapter ------------------------------------------------------------------------------


def _write_adapter(source: _Source, target: Path) -> None:
    deltas, head = [], {}
    for _, folder, adapter in source.parts:
        tensors = load_tensors(folder / "weights.safetensors")
        deltas.append((adapter, tensors))
        head |= {name: tensor for name, tensor in tensors.items() if name.startswith("head.")}
    joined, rank = joined_adapters(deltas), sum(adapter.rank for adapter, _ in deltas)
    named = {f"base_model.model.{name}": tensor for name, tensor in joined.items()}
    reward = source.stage == "reward"
    if reward:
        named["base_model.model.score.weight"] = head["head.weight"][:1]
    chat = load_chat(source.model)
    tokenizer = export_tokenizer(chat)
    config = AutoConfig.from_pretrained(resolve(source.model.name))
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if reward else "CAUSAL_LM",
        "base_model_name_or_path": resolve(source.model.name),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "modules_to_save": ["score"] if reward else None,
    }
    settings |= _targets({name.removesuffix(".lora_A.weight") for name in joined if ".lora_A." in name}, config)
    save_tensors(target / "adapter_model.safetensors", named, metadata={"format": "pt"})
    write_json(target / "adapter_config.json", settings)
    with storage_errors(target):
        if reward:
            _make_classifier(config, tokenizer, chat)
        else:
            generation_config(chat, source.config).save_pretrained(target)
        tokenizer.save_pretrained(target)


def joined_adapters(adapters: list[tuple[AdapterConfig, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """One adapter that changes the weights as several together do; R is the sum of their ranks r.

    Args:
        adapters: for each adapter, its settings and its tensors ``MODULE.lora_A.adapter.weight`` ``[r, in]`` and
            ``MODULE.lora_B.adapter.weight`` ``[out, r]``; on E experts ``[E·r, in]`` (expert by expert) and ``[out,
            r·E]`` (rank by rank).

    Returns:
        ``MODULE.lora_A.weight`` ``[R, in]`` and ``MODULE.lora_B.weight`` ``[out, R]``, or ``[E·R, in]`` and
        ``[out, R·E]``, for scale 1.
    """
    rank = sum(adapter.rank for adapter, _ in adapters)
    joined: dict[str, Tensor] = {}
    first = 0
    for adapter, tensors in adapters:
        part = slice(first, first + adapter.rank)
        for name, a in tensors.items():
            if not name.endswith(".lora_A.adapter.weight"):
                continue
            module = name.removesuffix(".lora_A.adapter.weight")
            b, experts = tensors[f"{module}.lora_B.adapter.weight"], len(a) // adapter.rank
            all_a = joined.setdefault(f"{module}.lora_A.weight", a.new_zeros(experts * rank, a.shape[1]))
            all_b = joined.setdefault(f"{module}.lora_B.weight", b.new_zeros(len(b), rank * experts))
            all_a.view(experts, rank, -1)[:, part] = a.view(experts, adapter.rank, -1)
            all_b.view(-1, rank, experts)[:, part] = adapter.alpha / adapter.rank * b.view(-1, adapter.rank, experts)
        first += adapter.rank
    return joined


def _targets(adapted: set[str], config: Any) -> dict[str, Any]:
    """PEFT's settings of what to adapt: linear layers by name, other weights by parameter.

    Args:
        adapted: the modules in the adapter's file, with PEFT's ``.base_layer`` for a second parameter of experts.
        config: configuration of the model.
    """
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    layers, parameters = [], []
    for name in sorted({name.replace(".base_layer", "") for name in adapted}):
        module = model.get_submodule(name)
        if not isinstance(module, nn.Linear | Conv1D):
            parameters += [f"{name}.{leaf}" for leaf, p in module.named_parameters(recurse=False) if p.dim() == 3]
        elif _translated(name, model):
            parameters.append(f"{name}.weight")
        else:
            layers.append(name)
    transposed = any(isinstance(module, Conv1D) for module in model.modules())  # GPT-2
    return {"target_modules": layers, "target_parameters": parameters or None, "fan_in_fan_out": transposed}


def _translated(layer: str, model: Any) -> bool:
    """Whether PEFT mistakes a linear layer's name for experts of transformers 4, which had one layer for each matrix.

    This happens for dense and shared MLPs of models with experts; PEFT then adapts the experts of every layer instead.
    """
    target = LoraConfig(target_modules=[layer])
    try:
        convert_peft_config_for_transformers(target, model, None)
    except ValueError:  # PEFT expects a whole MLP
        return True
    return layer not in (target.target_modules or ())


# GGUF -------------------------------------------------------------------------------------


def _converter(folder: Path) -> Path:
    """Path of llama.cpp's converter: on ``PATH``, or in the folder that ``LLAMA_CPP`` names."""
    candidates = [shutil.which(CONVERTER), str(Path(os.environ.get("LLAMA_CPP", "")) / CONVERTER)]
    path = next((Path(candidate) for candidate in candidates if candidate and Path(candidate).is_file()), None)
    if path is None:
        raise ConfigError(
            f"--gguf needs llama.cpp's {CONVERTER}, which is neither on PATH nor in the folder that the variable "
            "LLAMA_CPP names; get llama.cpp (https://github.com/ggml-org/llama.cpp) and set LLAMA_CPP to its folder. "
            f"Or export without --gguf and convert later: python {CONVERTER} {folder}"
        )
    return path


def _convert(converter: Path, folder: Path) -> None:
    program = [str(converter)] if os.access(converter, os.X_OK) else [sys.executable, str(converter)]
    command = [*program, str(folder), "--outfile", str(folder / "model.gguf")]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    if completed.returncode or not (folder / "model.gguf").is_file():
        lines = (completed.stderr or completed.stdout).strip().splitlines() or ["no message"]
        raise ModelError(f"{converter}: could not convert the model ({lines[-1][:300]}); export without --gguf")
