"""A classifier of texts for a guard's second stage: LoRA on the model's last layer, and a linear head on its states.

Each linear layer W of the last decoder layer computes W·x + (ALPHA / r) · B·A·x (E. Hu and others, "LoRA", 2021,
https://arxiv.org/abs/2106.09685, equation 3). The head reads the states after that layer, averaged over a text's
tokens. Training starts from a linear probe: B is zero and the head is a logistic regression.

Hooks add the adapter for one pass. PEFT is not used, because it would rename modules and parameters of a model that
others may be using.

Legend: N texts, T tokens, H width of the model, r rank.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trimtab.errors import ConfigError
from trimtab.guard.activations import POOLINGS, encode, pooled_texts
from trimtab.guard.probe import Probe
from trimtab.models import Backbone
from trimtab.models.adapting import linear_layers, suitable_layers
from trimtab.models.batch import padded

RANK = 8
ALPHA = 16
EPOCHS = 4
RATE = 1e-3
"""Learning rate of AdamW; falls linearly to zero."""
DECAY = 0.1
"""Weight decay of the adapter and the head."""
BATCH = 16
"""Texts per step."""
TOKENS = 128
"""Training reads at most this many tokens of a text."""

MEAN = POOLINGS.index("mean")


@dataclass(frozen=True, slots=True)
class LowRank:
    """The adapter's matrices for one linear layer."""

    a: Tensor
    """``[r, in]`` float32."""
    b: Tensor
    """``[out, r]`` float32."""


class LastLayer:
    """Gives the log-odds that a text is restricted, from the adapted last layer.

    Args:
        lora: the adapter's matrices, by the name of a linear layer inside the last decoder layer.
        head: linear head on the mean of the states after that layer.
    """

    def __init__(self, lora: Mapping[str, LowRank], head: Probe) -> None:
        self.lora, self.head = dict(lora), head

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return sum(4 * (part.a.numel() + part.b.numel()) for part in self.lora.values()) + self.head.weights.nbytes + 4

    def logits(self, backbone: Backbone, texts: Sequence[str], *, adapter: str | None = None) -> np.ndarray:
        """Log-odds of each text, ``[N]``, the highest over its windows; not calibrated.

        Args:
            backbone: the model; its last layer uses the adapter until this returns.
            texts: the texts, of any length.
            adapter: the policy's adapter, also active; None: the trunk.
        """
        with adapted(backbone, self.lora):
            states = pooled_texts(backbone, texts, [len(backbone.layers)], adapter=adapter)
        return np.array([self.head.logits(s[:, MEAN, 0].numpy()).max() for s in states])


@contextmanager
def adapted(backbone: Backbone, lora: Mapping[str, LowRank]) -> Iterator[None]:
    """Context in which the linear layers of the last decoder layer compute W·x + (ALPHA / r) · B·A·x.

    Raises:
        ConfigError: the model lacks such a layer, or the layer has another size.
    """
    modules = _linear(backbone)  # for the sizes; the policy's adapter may wrap a module and compute without calling it
    for name, part in lora.items():
        shape = None if name not in modules else _shape(modules[name])
        if shape != (part.b.shape[0], part.a.shape[1]):
            raise ConfigError(
                f"the second stage of this guard adapts {name} ({part.b.shape[0]} × {part.a.shape[1]}) of the last "
                f"layer and the model has {'no such layer' if shape is None else f'{shape[0]} × {shape[1]}'}; train a "
                "guard for this model"
            )
    layer = backbone.layers[len(backbone.layers) - 1]
    with ExitStack() as hooks:
        for name, part in lora.items():
            hooks.enter_context(layer.get_submodule(name).register_forward_hook(partial(_add, part)))
        yield


def _add(part: LowRank, _module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    a, b = part.a.to(output.device), part.b.to(output.device)
    update = (inputs[0].float() @ a.T) @ b.T
    return output + (ALPHA / len(a) * update).to(output.dtype)


def _linear(backbone: Backbone) -> dict[str, Any]:
    """Linear layers of the last decoder layer by their names inside it."""
    last = len(backbone.layers) - 1
    modules = linear_layers(backbone.layers, last)
    return {name.partition(".")[2]: module for name, module in modules.items()}


def _shape(module: Any) -> tuple[int, int]:
    """Outputs and inputs; GPT-2's layers hold the transposed weight."""
    rows, columns = module.weight.shape
    return (rows, columns) if isinstance(module, torch.nn.Linear) else (columns, rows)


# Training ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Inputs:
    """Arguments of the last layer for a batch of texts of similar length."""

    rows: list[int]
    """Indices of the texts."""
    args: tuple[Any, ...]
    """Positional arguments of the call; the states come first."""
    kwargs: dict[str, Any]
    """Keyword arguments of the call."""
    counts: Tensor
    """``[B, T]`` bool, True: a token of the text; neither padding nor the token before it."""


class _LastLayerReached(Exception):
    """Ends a forward pass before the last layer."""


@torch.no_grad()
def last_inputs(backbone: Backbone, texts: Sequence[str], *, adapter: str | None = None) -> list[Inputs]:
    """Run the layers below the last on the first :data:`TOKENS` tokens of each text, once for all epochs and folds.

    The states take T · H · 4 bytes per text.
    """
    rows = [encode(backbone, text)[0][: 1 + TOKENS] for text in texts]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def catch(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))
        raise _LastLayerReached

    result = []
    with backbone.layers[len(backbone.layers) - 1].register_forward_pre_hook(catch, with_kwargs=True):
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            tokens = padded([rows[i] for i in batch])
            counts = torch.zeros_like(tokens, dtype=torch.bool)
            for row, i in enumerate(batch):
                counts[row, min(1, len(rows[i]) - 1) : len(rows[i])] = True
            with suppress(_LastLayerReached):
                backbone.hidden(tokens.to(backbone.device), adapter=adapter)
            result.append(Inputs(batch, *calls[-1], counts.to(backbone.device)))
    return result


def last_states(backbone: Backbone, inputs: Inputs, *, adapter: str | None = None) -> Tensor:
    """Mean of the states after the last layer over each text's tokens, ``[B, H]`` float32.

    Args:
        backbone: the model; to use an adapter, call this inside :func:`adapted`.
        inputs: from :func:`last_inputs`.
        adapter: the policy's adapter; None: the trunk.
    """
    backbone.activate(adapter)
    with backbone.autocast():
        output = backbone.layers[len(backbone.layers) - 1](*inputs.args, **inputs.kwargs)
    states = (output[0] if isinstance(output, tuple) else output).float() * inputs.counts[..., None]
    return states.sum(dim=1) / inputs.counts.sum(dim=1, keepdim=True)


def adapted_names(backbone: Backbone) -> list[str]:
    """Names, inside the last decoder layer, of the linear layers that take an adapter.

    Raises:
        ConfigError: there are none.
    """
    backbone.activate(None)
    tokens = torch.arange(4, device=backbone.device)[None]
    names = suitable_layers(backbone.model, backbone.layers, len(backbone.layers) - 1, tokens)
    if not names:
        raise ConfigError(
            f"the last layer of {type(backbone.model).__name__} has no linear layer that takes an adapter, which the "
            "second stage needs; leave --escalate out, or name another --model"
        )
    return [name.partition(".")[2] for name in names]


def fit_last_layer(
    backbone: Backbone,
    inputs: Sequence[Inputs],
    labels: np.ndarray,
    use: np.ndarray,
    names: Sequence[str],
    *,
    adapter: str | None = None,
    epochs: int = EPOCHS,
    seed: int = 0,
) -> LastLayer:
    """Train an adapter on the last layer and a head with the logistic loss; both labels get the same total weight.

    Args:
        backbone: the model; none of its weights changes.
        inputs: inputs of all texts, from :func:`last_inputs`.
        labels: ``[N]``, 1: restricted, 0: not.
        use: ``[N]`` bool, True: train on the text.
        names: names of the linear layers that get an adapter, from :func:`adapted_names`.
        adapter: the policy's adapter; None: the trunk.
        epochs: passes over the texts; 0: a linear probe after the last layer.
        seed: seed of A and of the order of the steps.
    """
    draw = torch.Generator().manual_seed(seed)
    lora = _initial_lora(backbone, names, draw)
    head, bias, mean, scale = _initial_head(backbone, inputs, labels, use, adapter)
    weights = [t.requires_grad_(True) for part in lora.values() for t in (part.a, part.b)] + [head, bias]
    y = torch.tensor(labels, dtype=torch.float32, device=backbone.device)
    used = torch.tensor(use, device=backbone.device)
    share = float(labels[use].mean())
    weight = torch.where(y > 0, 0.5 / share, 0.5 / (1 - share)) * used
    batches = [batch for batch in inputs if use[batch.rows].any()]
    steps = max(1, epochs * len(batches))
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    with adapted(backbone, lora), torch.enable_grad():
        for _ in range(epochs):
            for index in torch.randperm(len(batches), generator=draw).tolist():
                rows = batches[index].rows
                z = ((last_states(backbone, batches[index], adapter=adapter) - mean) / scale) @ head + bias
                loss = functional.binary_cross_entropy_with_logits(z, y[rows], weight=weight[rows], reduction="sum")
                optimizer.zero_grad()
                (loss / used[rows].sum()).backward()
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                schedule.step()
    folded = (head / scale).detach()
    probe = Probe(folded.cpu().numpy(), float((bias.detach() - folded @ mean).item()))
    return LastLayer(
        {name: LowRank(part.a.detach().cpu(), part.b.detach().cpu()) for name, part in lora.items()}, probe
    )


@torch.no_grad()
def states_of(
    backbone: Backbone, inputs: Sequence[Inputs], lora: Mapping[str, LowRank], *, adapter: str | None = None
) -> np.ndarray:
    """Mean states of all texts after the adapted last layer, ``[N, H]``; ``lora`` is ``{}`` for no adapter."""
    result = np.zeros((sum(len(batch.rows) for batch in inputs), backbone.width), np.float32)
    with adapted(backbone, lora):
        for batch in inputs:
            result[batch.rows] = last_states(backbone, batch, adapter=adapter).cpu().numpy()
    return result


def _initial_lora(backbone: Backbone, names: Sequence[str], draw: torch.Generator) -> dict[str, LowRank]:
    """Initial matrices of each linear layer: A is drawn as in ``nn.Linear``, B is zero."""
    modules, lora = _linear(backbone), {}
    for name in names:
        rows, columns = _shape(modules[name])
        a = (2 * torch.rand(RANK, columns, generator=draw) - 1) / columns**0.5
        lora[name] = LowRank(a.to(backbone.device), torch.zeros(rows, RANK, device=backbone.device))
    return lora


def _initial_head(
    backbone: Backbone, inputs: Sequence[Inputs], labels: np.ndarray, use: np.ndarray, adapter: str | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Head and bias of a linear probe on standardised states, and their mean and scale."""
    states = states_of(backbone, inputs, {}, adapter=adapter)[use]
    mean, scale = states.mean(axis=0), states.std(axis=0) + 1e-6
    probe = Probe.fit(states, labels[use])
    values = (probe.weights * scale, np.float32(probe.bias + probe.weights @ mean), mean, scale)
    head, bias, means, scales = (torch.tensor(v, dtype=torch.float32, device=backbone.device) for v in values)
    return head.requires_grad_(True), bias.requires_grad_(True), means, scales
