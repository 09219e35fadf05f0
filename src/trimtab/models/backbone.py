"""One trunk for all roles: base weights once, a LoRA adapter per role, hidden states on request.

Policy, critic and reward model are adapters on the same frozen trunk, and the reference is the
trunk with adapters off. If only the top layers have adapters, the layers below give the same states
for every role and every epoch: :meth:`Backbone.frozen_hidden` runs them,
:class:`~trimtab.models.FrozenStates` stores the result and :meth:`Backbone.hidden` continues from it.

Batches are right-padded and attention is causal, so a real token never sees padding and no
attention mask is needed. Packed rows (SFT) have a block-diagonal mask.
"""

import copy
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trimtab.config import Config
from trimtab.errors import ConfigError, ModelError
from trimtab.models.adapting import (
    adaptable,
    adapted_weight,
    check_experts,
    expert_parameters,
    put_adapter,
    remove_adapter,
)
from trimtab.models.batch import Batch
from trimtab.models.chat import Chat
from trimtab.models.kernels import kernels
from trimtab.models.layouts import Layouts, find_layouts, make_probe
from trimtab.models.loading import (
    ModelConfig,
    check_vocabulary,
    compute_dtype,
    load_causal_lm,
    load_chat,
    pick_device,
)
from trimtab.models.sharded import Shards, part_like

_log = logging.getLogger(__name__)


class AdapterConfig(Config):
    """What is trained: low-rank adapters on some layers, or every weight."""

    kind: Literal["lora", "full"] = "lora"
    """``lora``: adapters, the trunk stays frozen and shared. ``full``: all weights, one copy per role; of a multimodal
    model those of its text model and head."""
    rank: int = Field(default=16, ge=1)
    """LoRA rank r."""
    alpha: int = Field(default=32, ge=1)
    """LoRA scale: the update is (alpha / rank) · B·A."""
    top_layers: int | None = Field(default=None, ge=1)
    """Adapters only on this many upper layers; None means all. Below them nothing is trained."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """LoRA dropout while training (always off in references and old log-probabilities)."""
    experts: bool = False
    """True: adapters on mixtures of experts too, of rank ``rank`` for each expert. A training pass then needs a second
    copy of the experts' weights; with ``model.gradient_checkpointing``, of one layer at a time. False: adapters on the
    other layers only."""

    @model_validator(mode="after")
    def _experts_without_dropout(self) -> "AdapterConfig":
        """Experts' inputs are not seen by their adapter, which changes the weights."""
        if self.kind == "lora" and self.experts and self.dropout:
            raise ValueError(
                f"dropout is {self.dropout:g} and experts is true, and adapters on experts have no dropout; set "
                "dropout: 0, or experts: false"
            )
        return self


class Backbone:
    """A causal language model, its chat rendering and the adapters on it.

    Args:
        model: a Hugging Face causal language model in float32.
        chat: how its conversations are rendered.
        dtype: precision of matrix products.
        frozen_dtype: precision of weights while they are frozen; adapters are float32 at least.
        gradient_checkpointing: recompute each layer in the backward pass instead of storing its intermediate results.
        layouts: arrangements of rows that this model computes correctly; None: they are tried on a probe.

    Raises:
        ModelError: frozen weights are in bfloat16 but products are not, the model changes logits after the output
            projection, the architecture does not support gradient checkpointing, or the model is not causal.
    """

    def __init__(
        self,
        model: Any,
        chat: Chat,
        *,
        dtype: torch.dtype = torch.float32,
        frozen_dtype: torch.dtype = torch.float32,
        gradient_checkpointing: bool = False,
        layouts: Layouts | None = None,
    ) -> None:
        self.model = model
        self.chat = chat
        self.dtype, self.frozen_dtype = torch.float32, frozen_dtype
        self.layers = _decoder_layers(model)
        self.gradient_checkpointing = gradient_checkpointing
        self.frozen_half: nn.Module | None = None
        """The layers below every adapter; None if an adapter is on the lowest layer, there is no adapter, or this
        architecture cannot be cut in two."""
        self.frozen_layers = 0
        """Number of layers in ``frozen_half``."""
        self.shards: Shards | None = None
        """The sharded weights; None: this process has all weights."""
        self._trained_half: nn.Module | None = None
        self._lowest: dict[str, int] = {}
        if frozen_dtype == torch.bfloat16 and dtype != torch.bfloat16:
            raise ModelError(
                f"model.frozen_precision is bfloat16 and products are in {str(dtype).removeprefix('torch.')} here; set "
                "model.precision: bfloat16, or frozen_precision: float32"
            )
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        if gradient_checkpointing:
            if not all(hasattr(layer, "gradient_checkpointing") for layer in self.layers):
                raise ModelError(
                    f"{type(model).__name__}: no checkpointing in its layers; set model.gradient_checkpointing: false"
                )
            layers: Any = self.layers
            for layer in layers:
                layer.gradient_checkpointing = True
                layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        self._additive = dtype == torch.float32 or model.config._attn_implementation != "sdpa"
        self._check_head()
        self.layouts = find_layouts(self) if layouts is None else layouts  # tried in float32
        """Arrangements of rows that give the same results as plain rows; others are not used."""
        self.dtype = dtype
        self.freeze()

    @classmethod
    def load(cls, config: ModelConfig) -> "Backbone":
        """Load the model that a configuration names."""
        chat, model = load_chat(config), load_causal_lm(config)
        check_vocabulary(model, chat.tokenizer, config.name)
        return cls(
            model,
            chat,
            dtype=compute_dtype(config, pick_device(config.device)),
            frozen_dtype=getattr(torch, config.frozen_precision),
            gradient_checkpointing=config.gradient_checkpointing,
        )

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.device

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return self.model.config.get_text_config().hidden_size

    @property
    def head(self) -> Any:
        """The projection from hidden states to the vocabulary, a module with a weight and possibly a bias."""
        return self.model.get_output_embeddings()

    def copy(self) -> "Backbone":
        """A second trunk with its own weights, for full fine-tuning of several roles."""
        return Backbone(
            copy.deepcopy(self.model),
            self.chat,
            dtype=self.dtype,
            frozen_dtype=self.frozen_dtype,
            gradient_checkpointing=self.gradient_checkpointing,
            layouts=self.layouts,
        )

    def freeze(self) -> None:
        """Freeze all weights of a model without adapters, and store them at the precision of frozen weights."""
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
            self._hold(parameter, self.frozen_dtype)

    def unfreeze(self) -> None:
        """Make all weights that text goes through trainable, in float32; bfloat16 would lose small optimiser steps."""
        for parameter in self.model.parameters():
            self._hold(parameter, torch.float32)
        text = _text_weights(self.model)
        for parameter in text.values():
            parameter.requires_grad_(True)
        others = {name for name, _ in self.model.named_parameters()} - set(text)
        if others:
            parts = sorted({name.removeprefix("model.").partition(".")[0] for name in others})
            _log.warning(
                "%s: text does not reach %s; they stay as they are", type(self.model).__name__, ", ".join(parts)
            )

    def parameters(self) -> dict[str, nn.Parameter]:
        """The weights that text goes through, by name; if they are sharded, this rank's parts."""
        text = _text_weights(self.model)
        return text if self.shards is None else {name: self.shards.parameters[name] for name in text}

    def shard(self, *, full: bool) -> None:
        """Shard the model's weights over all ranks. All ranks must call it.

        Args:
            full: True: all weights are trained. False: they are frozen, and adapters stay whole on every rank.
        """
        if self.shards is None:
            adapters = [] if full else [p for name, p in self.model.named_parameters() if ".lora_" in name]
            self.shards = Shards(self.model, list(self.layers), replicated=adapters)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside the context, this process has all weights; see :meth:`trimtab.models.sharded.Shards.gathered`."""
        with nullcontext() if self.shards is None else self.shards.gathered():
            yield

    def _hold(self, parameter: nn.Parameter, dtype: torch.dtype) -> None:
        """Change the precision of a weight if the backbone has two. Buffers, such as rotary angles, keep theirs."""
        if self.frozen_dtype != torch.float32:
            parameter.data = parameter.data.to(dtype)

    def autocast(self) -> Any:
        """Context in which matrix products have this backbone's precision."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    # Adapters -----------------------------------------------------------------------------

    def add_adapter(self, name: str, config: AdapterConfig, *, seed: int) -> None:
        """Put a new adapter on the trunk. Its B is zero, so it starts equal to the trunk."""
        with self.gathered():
            self._add_adapter(name, config, seed)

    def _add_adapter(self, name: str, config: AdapterConfig, seed: int) -> None:
        count = len(self.layers)
        top = count if config.top_layers is None else config.top_layers
        if not 1 <= top <= count:
            raise ConfigError(f"adapter.top_layers is {top} but the model has {count} layers; use 1 to {count}")
        self.activate(None)
        probe = torch.arange(4, device=self.device)[None]
        experts = expert_parameters(self.layers, count - top) if config.experts else []
        if config.experts and not experts:
            raise ConfigError(
                f"adapter.experts is true but the top {top} layers of {type(self.model).__name__} have no mixture of "
                "experts; set adapter.experts: false"
            )
        names = adaptable(self.model, self.layers, count - top, probe, experts=experts)
        widest = max(max(parameter.shape, default=1) for parameter in self.layers.parameters())
        if config.rank > widest:
            raise ConfigError(f"adapter.rank is {config.rank} but the widest layer has {widest}; use 1 to {widest}")
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # GPT-2; peft mends it itself
            torch.manual_seed(seed)
            sizes: dict[str, Any] = {"rank": config.rank, "alpha": config.alpha, "dropout": config.dropout}
            put_adapter(self.layers, names, name, experts=experts, **sizes)
        kernels().adapter_added(self.model)
        self.train(False, full=False)  # PEFT creates an adapter with dropout on
        self.activate(None)
        if experts:
            with self.autocast():
                check_experts(self.model, self.layers, name, probe)
        self._lowest[name] = count - top
        self._split()

    def adapter_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """An adapter's weights by full name."""
        return {k: p for k, p in self.model.named_parameters() if f".{name}." in k and ".lora_" in k}

    def activate(self, name: str | None) -> None:
        """Activate one adapter; None switches all adapters off (the reference)."""
        for module in self._tuned():
            here = name is not None and name in module.lora_A
            module.enable_adapters(enabled=here)
            if here:
                module.set_adapter(name)

    def merge(self, name: str) -> None:
        """Merge an adapter into the trunk permanently (the SFT state becomes the new reference)."""
        if self.shards is not None:
            self.shards.divide()
        with torch.no_grad():
            for module in self._tuned():
                if name in module.lora_A:
                    weight = adapted_weight(module)
                    weight += part_like(module.get_delta_weight(name), weight)
        remove_adapter(self.layers, name)
        del self._lowest[name]
        with self.gathered():
            self._split()

    @contextmanager
    def merged(self, name: str | None) -> Iterator[None]:
        """Inside the context, the plain trunk computes with an adapter's weights added.

        The original weights are restored from a copy, so nothing drifts. Sharded weights are gathered.
        """
        originals: list[tuple[nn.Parameter, Tensor]] = []
        self.activate(None)
        with self.gathered():
            try:
                with torch.no_grad():
                    for module in self._tuned():
                        if name is not None and name in module.lora_A:
                            weight = adapted_weight(module)
                            originals.append((weight, weight.data))
                            weight.data = (weight.data + module.get_delta_weight(name)).to(weight.dtype)
                yield
            finally:
                for weight, original in originals:
                    weight.data = original

    def train(self, on: bool, *, full: bool) -> None:
        """Switch dropout on or off: in the whole model if all weights are trained, otherwise in the adapters."""
        if full:
            self.model.train(on)
        for module in self._tuned():
            module.lora_dropout.train(on)
        if self.gradient_checkpointing:
            for layer in self.layers:
                layer.training = on  # transformers checkpoints a layer that is in training; its parts stay as they are

    def adapted(self, name: str | None) -> list[Any]:
        """The layers that have this adapter."""
        return [module for module in self._tuned() if name is not None and name in module.lora_A]

    def _tuned(self) -> list[Any]:
        return [m for m in self.model.modules() if isinstance(m, BaseTunerLayer)]

    # Hidden states ------------------------------------------------------------------------

    @torch.no_grad()
    def frozen_hidden(self, batch: Batch) -> Tensor:
        """Hidden states of a batch after the layers below every adapter, ``[B, T, H]``.

        They depend only on the tokens. :meth:`trimtab.models.FrozenStates.of` computes missing states with it.
        """
        assert self.frozen_half is not None
        self.activate(None)
        shared = batch.shared_prompts if self.layouts.shared_prompts else None
        with self.autocast():
            if shared is None:
                return self._states(self.frozen_half, input_ids=batch.tokens, use_cache=False)
            states = self._states(
                self.frozen_half,
                input_ids=shared.tokens,
                attention_mask=self.mask(shared.attention),
                position_ids=shared.positions,
                use_cache=False,
            )
            return shared.unpack(states)

    def hidden(
        self,
        tokens: Tensor,
        *,
        adapter: str | None,
        frozen: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states under one adapter.

        Args:
            tokens: ``[B, T]``, right-padded.
            adapter: which one; None for the reference.
            frozen: ``[B, T, H]``, from :meth:`frozen_hidden`; only the layers above run. None: all layers run.
            attention_mask: ``[B, 1, T, T]`` bool, True: may attend to; None: causal.
            position_ids: ``[B, T]``; None = 0, 1, 2, …

        Returns:
            ``[B, T, H]``.
        """
        self.activate(adapter)
        extra: dict[str, Any] = {"use_cache": False}
        if attention_mask is not None:
            extra["attention_mask"] = self.mask(attention_mask)
        if position_ids is not None:
            extra["position_ids"] = position_ids
        with self.autocast():
            if frozen is not None and self._trained_half is not None:
                return self._states(self._trained_half, inputs_embeds=frozen, **extra)
            return self._states(self.model.base_model, input_ids=tokens, **extra)

    def _states(self, trunk: nn.Module, **inputs: Any) -> Tensor:
        """Final states of the model without its head, or of one of its halves."""
        if self.shards is not None:
            return self.shards.final_states(trunk, **inputs)
        return trunk(**inputs).last_hidden_state

    def mask(self, attention: Tensor) -> Tensor:
        """The bool mask, or a float one to add to attention scores, which spares each layer a converted copy.

        Attention without a kernel adds whatever mask it is given, True as 1, so it always gets the float mask.
        """
        if not self._additive:
            return attention
        zeros = torch.zeros(attention.shape, dtype=self.head.weight.dtype, device=self.device)
        return zeros.masked_fill_(~attention, -math.inf)

    def _split(self) -> None:
        """Split the trunk below the lowest adapter into two halves, if this architecture can be cut there."""
        base = self.model.base_model
        below = min(self._lowest.values(), default=0)
        self.frozen_half = self._trained_half = None
        self.frozen_layers = 0
        if below == 0 or not self.layouts.split or not (hasattr(base, "layers") and hasattr(base, "norm")):
            return
        lower = _view(base, list(self.layers)[:below], nn.Identity())
        upper = _view(base, list(self.layers)[below:], base.norm)
        self.activate(None)
        probe = make_probe(self)
        row = torch.tensor([probe.rows[0]], device=self.device)
        try:
            with torch.no_grad():
                middle = lower(input_ids=row, use_cache=False).last_hidden_state
                cut = upper(inputs_embeds=middle, use_cache=False).last_hidden_state
        except Exception:  # layers that depend on those below, by number or through shared values
            return
        if not probe.differs(cut[0], 0):
            self.frozen_half, self._trained_half, self.frozen_layers = lower, upper, below

    def _check_head(self) -> None:
        """The head applied to hidden states must be the model's own logits (no soft cap, no scaling).

        The states are scaled until the largest logit is 100, because a cap of 30 has no visible effect on the small
        logits of an untrained model.
        """
        name, states = type(self.model).__name__, []

        def scale(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            plain = output.last_hidden_state
            output.last_hidden_state = plain * (100 / self.head(plain).abs().max().clamp(min=1e-12))
            states.append(output.last_hidden_state)
            return output

        probe = torch.arange(4, device=self.device)[None]
        handle = self.model.base_model.register_forward_hook(scale)
        try:
            with torch.no_grad():
                expected = self.model(input_ids=probe, use_cache=False).logits
                handle.remove()
                if not states:  # the model computes past its trunk, as decoders of translation models do
                    states.append(self.model.base_model(input_ids=probe, use_cache=False).last_hidden_state)
                computed = self.head(states[-1])
        except (AttributeError, TypeError) as error:
            raise ModelError(f"{name} gives no hidden states ({error}), which trimtab computes with") from error
        except RuntimeError as error:
            raise ModelError(f"{name}: its output projection does not take its hidden states ({error})") from error
        finally:
            handle.remove()
        if not torch.isfinite(expected).all():
            raise ModelError(
                f"{name} computes NaN or infinity on a few tokens; a setting in its config.json is not the one that it "
                "was trained with"
            )
        if not torch.allclose(computed, expected, rtol=1e-3, atol=1e-3):
            raise ModelError(
                f"{name} changes its logits after the output projection (soft cap or scale); "
                "trimtab would compute wrong log-probabilities for it, so it refuses"
            )


def _decoder_layers(model: Any) -> nn.ModuleList:
    """The decoder layers of the text model; a vision tower may have as many layers."""
    count = model.config.get_text_config().num_hidden_layers
    for module in model.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(f"{type(model).__name__}: no list of {count} decoder layers found; this architecture is unknown")


def _text_weights(model: Any) -> dict[str, nn.Parameter]:
    """The weights that text goes through, by name: all, or those of a multimodal model's text model and head."""
    every = dict(model.named_parameters())
    if model.config.get_text_config() is model.config:
        return every
    parts = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    text = {id(parameter) for part in parts for parameter in part.parameters()}
    return {name: parameter for name, parameter in every.items() if id(parameter) in text}


def _view(base: nn.Module, layers: list[nn.Module], norm: nn.Module) -> nn.Module:
    """The same module with other layers and final norm; all weights are shared with ``base``."""
    view = copy.copy(base)
    view._modules = dict(base._modules)
    view._modules["layers"] = nn.ModuleList(layers)
    view._modules["norm"] = norm
    return view
