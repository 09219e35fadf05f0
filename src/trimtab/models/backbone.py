"""One trunk for all roles: base weights once, a LoRA adapter per role, hidden states on request.

Policy, critic and reward model are adapters on the same frozen trunk, and the reference is the
trunk with adapters off. When adapters sit on the top layers only, everything below them is the
same for every role and every epoch: :meth:`Backbone.lower` runs it once and
:meth:`Backbone.hidden` continues from there.

Batches are right-padded and attention is causal, so a real token never sees padding and no
attention mask is needed. Packed rows (SFT) bring a block-diagonal one.
"""

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from peft import LoraConfig as PeftLoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from trimtab.config import Config
from trimtab.errors import ConfigError, ModelError
from trimtab.models.batch import Batch
from trimtab.models.chat import Chat
from trimtab.models.loading import ModelConfig, compute_dtype, load_causal_lm, load_chat, pick_device
from trimtab.models.lora import quicken
from trimtab.models.lower import REMEMBERED, DrawnStates


class AdapterConfig(Config):
    """What is trained: low-rank adapters on some layers, or every weight."""

    kind: Literal["lora", "full"] = "lora"
    """``lora``: adapters, the trunk stays frozen and shared. ``full``: all weights, one copy per role."""
    rank: int = Field(default=16, ge=1)
    """LoRA rank r."""
    alpha: int = Field(default=32, ge=1)
    """LoRA scale: the update is (alpha / rank) · B·A."""
    top_layers: int | None = Field(default=None, ge=1)
    """Adapters only on this many upper layers; None means all. Below them nothing is trained."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """LoRA dropout while training (always off in references and old log-probabilities)."""


class Backbone:
    """A causal language model, its chat rendering and the adapters on it.

    Args:
        model: a Hugging Face causal language model in float32.
        chat: how its conversations are rendered.
        dtype: precision of matrix products (weights stay float32).
        gradient_checkpointing: compute each layer anew in the backward pass instead of keeping what is in it.

    Raises:
        ModelError: logits are changed after the output projection, or the architecture has no checkpointing.
    """

    def __init__(
        self, model: Any, chat: Chat, *, dtype: torch.dtype = torch.float32, gradient_checkpointing: bool = False
    ) -> None:
        self.model = model
        self.chat = chat
        self.dtype = dtype
        self.layers = _decoder_layers(model)
        self.gradient_checkpointing = gradient_checkpointing
        self.frozen_layers = 0
        """Layers below every adapter: the same for all roles."""
        self._lowest: dict[str, int] = {}
        self._lower: nn.Module | None = None
        self._upper: nn.Module | None = None
        self.drawn: DrawnStates | None = None
        """What the frozen layers give while answers are drawn; None: it is not kept. Who draws answers to go on with
        them sets it. See :meth:`lower`."""
        self._recent: dict[tuple[torch.Size, bytes], Tensor] = {}
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
        self._check_head()

    @classmethod
    def load(cls, config: ModelConfig) -> "Backbone":
        """Load what a configuration names."""
        chat, model = load_chat(config), load_causal_lm(config)
        dtype = compute_dtype(config, pick_device(config.device))
        return cls(model, chat, dtype=dtype, gradient_checkpointing=config.gradient_checkpointing)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def tap(self) -> int:
        """After so many layers the sampler keeps the states in :attr:`drawn`; 0: none are frozen, or nobody asked."""
        return 0 if self.drawn is None else self.frozen_layers

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return self.model.config.get_text_config().hidden_size

    @property
    def head(self) -> Any:
        """The projection from hidden states to the vocabulary, a module with weight and perhaps bias."""
        return self.model.get_output_embeddings()

    def copy(self) -> "Backbone":
        """A second trunk with weights of its own, for full fine-tuning of several roles."""
        return Backbone(
            copy.deepcopy(self.model),
            self.chat,
            dtype=self.dtype,
            gradient_checkpointing=self.gradient_checkpointing,
        )

    def autocast(self) -> Any:
        """Context in which matrix products run at this backbone's precision."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    # Adapters -----------------------------------------------------------------------------

    def add_adapter(self, name: str, config: AdapterConfig, *, seed: int) -> None:
        """Put a fresh adapter on the trunk; its B is zero, so it starts as the trunk itself."""
        count = len(self.layers)
        top = count if config.top_layers is None else config.top_layers
        if not 1 <= top <= count:
            raise ConfigError(f"adapter.top_layers is {top} but the model has {count} layers; use 1 to {count}")
        chosen = {id(layer) for layer in list(self.layers)[count - top :]}
        targets = [
            f"{prefix}.{path}" if path else prefix
            for prefix, layer in self.model.named_modules()
            if id(layer) in chosen
            for path, module in layer.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and not path.startswith("lora_") and ".lora_" not in path
        ]
        targets = sorted({t.removesuffix(".base_layer") for t in targets})
        peft = PeftLoraConfig(
            r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=targets, bias="none"
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # GPT-2; peft mends it itself
            torch.manual_seed(seed)
            self.model.add_adapter(peft, adapter_name=name)
        quicken(self.model)
        self.train(False, full=False)  # a new adapter comes with its dropout on
        self.activate(None)
        self._lowest[name] = count - top
        self._split()

    def copy_adapter(self, source: str, target: str) -> None:
        """Set adapter ``target`` to the weights of ``source`` (same shape)."""
        weights = {k.replace(f".{source}.", f".{target}."): v for k, v in self.adapter_parameters(source).items()}
        with torch.no_grad():
            for name, parameter in self.adapter_parameters(target).items():
                parameter.copy_(weights[name])

    def adapter_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """An adapter's weights by full name."""
        return {k: p for k, p in self.model.named_parameters() if f".{name}." in k and ".lora_" in k}

    def activate(self, name: str | None) -> None:
        """Make one adapter the active one; None switches all off (the reference)."""
        for module in self._tuned():
            here = name is not None and name in module.lora_A
            module.enable_adapters(enabled=here)
            if here:
                module.set_adapter(name)

    def merge(self, name: str) -> None:
        """Fold an adapter into the trunk for good (the SFT state becomes the new reference)."""
        with torch.no_grad():
            for module in self._tuned():
                if name in module.lora_A:
                    module.get_base_layer().weight += module.get_delta_weight(name)
        self.model.delete_adapter(name)
        del self._lowest[name]
        self._split()

    @contextmanager
    def merged(self, name: str | None) -> Iterator[None]:
        """Inside, the plain trunk computes with an adapter's weights added.

        The original weights are put back, not subtracted back, so nothing drifts.
        """
        kept: list[tuple[nn.Parameter, Tensor]] = []
        self.activate(None)
        try:
            with torch.no_grad():
                for module in self._tuned():
                    if name is not None and name in module.lora_A:
                        weight = module.get_base_layer().weight
                        kept.append((weight, weight.data))
                        weight.data = weight.data + module.get_delta_weight(name)
            yield
        finally:
            for weight, original in kept:
                weight.data = original

    def train(self, on: bool, *, full: bool) -> None:
        """Dropout on or off: of the whole model when all weights are trained, of the adapters otherwise."""
        if full:
            self.model.train(on)
        for module in self._tuned():
            module.lora_dropout.train(on)
        if self.gradient_checkpointing:
            for layer in self.layers:
                layer.training = on  # transformers checkpoints a layer that is in training; its parts stay as they are

    def _tuned(self) -> list[Any]:
        return [m for m in self.model.modules() if isinstance(m, BaseTunerLayer)]

    # Hidden states ------------------------------------------------------------------------

    def lower(self, batch: Batch) -> Tensor | None:
        """Hidden states of a batch below the lowest adapter, ``[B, T, H]``; None if there is no such place.

        They depend on the tokens only, so one call serves all roles and epochs of a rollout. Rows that the sampler
        drew may be in :attr:`drawn` already. What is computed here is remembered by the whole batch, up to
        ``REMEMBERED`` padded tokens: scoring and training ask about the same micro-batches.
        """
        if self._lower is None:
            return None
        known = [None] * batch.size if self.drawn is None else self.drawn.of(batch)
        missing = [row for row, states in enumerate(known) if states is None]
        if len(missing) == batch.size:
            return self._computed(batch, self._lower)
        drawn = [(row, torch.cat(states)) for row, states in enumerate(known) if states is not None]
        out = drawn[0][1].new_zeros(*batch.tokens.shape, self.width)
        for row, states in drawn:
            out[row, : len(states)] = states
        if missing:
            rest = batch.rows(torch.tensor(missing, device=self.device))
            out[missing, : rest.tokens.shape[1]] = self._computed(rest, self._lower)
        return out

    def _computed(self, batch: Batch, lower: nn.Module) -> Tensor:
        key = (batch.tokens.shape, batch.tokens.cpu().numpy().tobytes())
        if key not in self._recent:
            self.activate(None)
            shared = batch.shared_prompts()
            with torch.no_grad(), self.autocast():
                if shared is None:
                    found = lower(input_ids=batch.tokens, use_cache=False).last_hidden_state
                else:
                    found = shared.unpack(
                        lower(
                            input_ids=shared.tokens,
                            attention_mask=shared.attention,
                            position_ids=shared.positions,
                            use_cache=False,
                        ).last_hidden_state
                    )
            self._recent[key] = found
            while len(self._recent) > 1 and sum(h.shape[0] * h.shape[1] for h in self._recent.values()) > REMEMBERED:
                del self._recent[next(iter(self._recent))]
        return self._recent[key]

    def hidden(
        self,
        tokens: Tensor,
        *,
        adapter: str | None,
        lower: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states under one adapter.

        Args:
            tokens: ``[B, T]``, right-padded.
            adapter: which one; None for the reference.
            lower: what :meth:`lower` gave for these tokens, to continue from there.
            attention_mask: ``[B, 1, T, T]`` bool, True = may look at; None = causal.
            position_ids: ``[B, T]``; None = 0, 1, 2, …

        Returns:
            ``[B, T, H]``.
        """
        self.activate(adapter)
        if attention_mask is not None and self.dtype == torch.float32:
            # What attention adds to its scores, once: each layer would make, and keep, its own from True and False.
            attention_mask = torch.zeros(attention_mask.shape, device=self.device).masked_fill_(
                ~attention_mask, -math.inf
            )
        extra = {"attention_mask": attention_mask, "position_ids": position_ids, "use_cache": False}
        with self.autocast():
            if lower is not None and self._upper is not None:
                return self._upper(inputs_embeds=lower, **extra).last_hidden_state
            return self.model.base_model(input_ids=tokens, **extra).last_hidden_state

    def _split(self) -> None:
        """Prepare the two halves of the trunk below the lowest adapter, if this architecture can be cut there."""
        base = self.model.base_model
        below = min(self._lowest.values(), default=0)
        self._lower = self._upper = None
        self._recent = {}
        if self.drawn is not None:
            self.drawn.clear()
        self.frozen_layers = 0
        if below == 0 or not (hasattr(base, "layers") and hasattr(base, "norm")):
            return
        lower = _view(base, list(self.layers)[:below], nn.Identity())
        upper = _view(base, list(self.layers)[below:], base.norm)
        probe = torch.arange(4, device=self.device)[None]
        self.activate(None)
        with torch.no_grad():
            middle = lower(input_ids=probe, use_cache=False).last_hidden_state
            cut = upper(inputs_embeds=middle, use_cache=False).last_hidden_state
            whole = base(input_ids=probe, use_cache=False).last_hidden_state
        if torch.allclose(cut, whole, rtol=1e-4, atol=1e-5):
            self._lower, self._upper, self.frozen_layers = lower, upper, below

    def _check_head(self) -> None:
        """The head applied to hidden states must be the model's own logits (no soft cap, no scaling)."""
        probe = torch.arange(4, device=self.device)[None]
        with torch.no_grad():
            hidden = self.model.base_model(input_ids=probe, use_cache=False).last_hidden_state
            ours, theirs = self.head(hidden), self.model(input_ids=probe, use_cache=False).logits
        if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3):
            raise ModelError(
                f"{type(self.model).__name__} changes its logits after the output projection (soft cap or scale); "
                "trimtab would compute wrong log-probabilities for it, so it refuses"
            )


def _decoder_layers(model: Any) -> nn.ModuleList:
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(f"{type(model).__name__}: no list of {count} decoder layers found; this architecture is unknown")


def _view(base: nn.Module, layers: list[nn.Module], norm: nn.Module) -> nn.Module:
    """The same module with other layers and final norm; all weights are shared with ``base``."""
    view = copy.copy(base)
    view._modules = dict(base._modules)
    view._modules["layers"] = nn.ModuleList(layers)
    view._modules["norm"] = norm
    return view
