"""Policy, reference, critic and reward model: one class with different heads on a backbone."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from trimtab.errors import ModelError
from trimtab.models.backbone import AdapterConfig, Backbone
from trimtab.models.batch import Batch, block_diagonal_mask
from trimtab.models.frozen import FrozenStates
from trimtab.models.head import token_logprobs, token_logprobs_and_entropies
from trimtab.models.kernels import kernels
from trimtab.models.layouts import one_row_each
from trimtab.models.sharded import part_like, save_whole, whole


class Role:
    """One role on a backbone.

    Args:
        backbone: the trunk it computes with.
        adapter: name of its adapter; None: the trunk without an adapter (reference, or full fine-tuning).
        scalar_head: True for critic and reward model: a linear map from hidden state to one number, or to ``heads``.
        full: True: the backbone belongs to this role and all its weights are trained.
        head_only: True: backbone and adapter belong to another role; only the head is trained.
        heads: number of outputs of the scalar head, for a reward model of several objectives.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        adapter: str | None = None,
        scalar_head: bool = False,
        full: bool = False,
        head_only: bool = False,
        heads: int = 1,
    ) -> None:
        self.backbone = backbone
        self.adapter = adapter
        self.full = full
        self.head_only = head_only
        self.scalar = nn.Linear(backbone.width, heads).to(backbone.device) if scalar_head else None
        if self.scalar is not None:
            nn.init.zeros_(self.scalar.weight)
            nn.init.zeros_(self.scalar.bias)
        if full:
            backbone.unfreeze()

    @classmethod
    def trainable(
        cls,
        backbone: Backbone,
        name: str,
        config: AdapterConfig,
        *,
        seed: int,
        scalar_head: bool = False,
        heads: int = 1,
    ) -> "Role":
        """A role with its own weights: an adapter on ``backbone``, or a full copy of it."""
        if config.kind == "full":
            return cls(backbone.copy(), scalar_head=scalar_head, full=True, heads=heads)
        backbone.add_adapter(name, config, seed=seed)
        return cls(backbone, adapter=name, scalar_head=scalar_head, heads=heads)

    def with_head(self) -> "Role":
        """A new role with a scalar head on this role's hidden states; it trains only the head."""
        return Role(self.backbone, adapter=self.adapter, scalar_head=True, head_only=True)

    # Weights ------------------------------------------------------------------------------

    def parameters(self) -> dict[str, nn.Parameter]:
        """The weights that this role trains, by name."""
        trained: dict[str, nn.Parameter] = {}
        if self.adapter is not None and not self.head_only:
            adapter = self.backbone.adapter_parameters(self.adapter)
            trained |= {k.replace(f".{self.adapter}.", ".adapter."): p for k, p in adapter.items()}
        elif self.full:
            trained |= self.backbone.parameters()
        if self.scalar is not None:
            trained |= {f"head.{name}": parameter for name, parameter in self.scalar.named_parameters()}
        return trained

    def state(self) -> dict[str, Tensor]:
        """A copy of the trained weights, on the CPU; sharded ones are gathered, so all ranks must call this."""
        return {name: whole(parameter) for name, parameter in self.parameters().items()}

    def save(self, path: Path) -> None:
        """Write the trained weights as safetensors. Sharded: all ranks must call this, and the first one writes."""
        shards = self.backbone.shards if self.full else None
        save_whole(path if shards is None or shards.first else None, self.parameters())

    def shard(self) -> None:
        """Shard the model's weights over all ranks; adapters on it stay whole. All ranks must call it."""
        self.backbone.shard(full=self.full)

    def gathered(self) -> AbstractContextManager[None]:
        """Context in which sharded weights are whole, so this rank can make passes without the others."""
        return self.backbone.gathered()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Copy weights in.

        Raises:
            ModelError: names or shapes differ from this role's.
        """
        parameters = self.parameters()
        if self.full:  # earlier versions also stored the parts of a multimodal model that text does not reach
            model = dict(self.backbone.model.named_parameters())
            state = {name: weight for name, weight in state.items() if name in parameters or name not in model}
        if parameters.keys() != state.keys():
            odd = sorted(parameters.keys() ^ state.keys())
            raise ModelError(
                f"weights do not fit: {len(odd)} names differ, for example {odd[0]!r}; were they trained with another "
                "adapter section?"
            )
        if self.backbone.shards is not None:
            self.backbone.shards.divide()
        with torch.no_grad():
            for name, parameter in parameters.items():
                if parameter.shape != state[name].shape:
                    raise ModelError(
                        f"weights do not fit: {name} is {tuple(state[name].shape)}, expected {tuple(parameter.shape)}"
                    )
                parameter.copy_(part_like(state[name], parameter))

    def train(self, on: bool = True) -> None:
        """Switch dropout on or off; it is on only in gradient steps."""
        self.backbone.train(on, full=self.full)

    def accumulating_gradients(self) -> AbstractContextManager[None]:
        """Context for the backward passes of an optimiser step."""
        exact = self.full and self.backbone.dtype == torch.float32 and self.backbone.shards is None
        return kernels().accumulating_gradients(self.backbone.model) if exact else nullcontext()

    # Computing ----------------------------------------------------------------------------

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Inside the context, the backbone's model computes with this role's weights."""
        self.backbone.activate(self.adapter)
        yield

    def hidden(self, batch: Batch, *, states: FrozenStates | None = None) -> Tensor:
        """Final hidden states, ``[B, T, H]``; equal prompts are computed once.

        Packed rows and shared prompts are separated for models that do not compute them correctly.

        Args:
            batch: tokens.
            states: store of the frozen layers' states, which are looked up or computed; None, or another backbone's:
                all layers run.
        """
        frozen = states.of(batch) if states is not None and states.backbone is self.backbone else None
        layouts = self.backbone.layouts
        if batch.segments is not None and not layouts.packed:
            tokens, place = one_row_each(batch)
            rows = self.backbone.hidden(tokens, adapter=self.adapter).flatten(0, 1)
            return rows.index_select(0, place.flatten()).view(*batch.tokens.shape, rows.shape[-1])
        shared = batch.shared_prompts if layouts.shared_prompts else None
        if shared is not None:
            packed = self.backbone.hidden(
                shared.tokens,
                adapter=self.adapter,
                frozen=None if frozen is None else shared.pack(frozen),
                attention_mask=shared.attention,
                position_ids=shared.positions,
            )
            return shared.unpack(packed)
        return self.backbone.hidden(
            batch.tokens,
            adapter=self.adapter,
            frozen=frozen,
            attention_mask=None if batch.segments is None else block_diagonal_mask(batch.segments),
            position_ids=batch.positions,
        )

    def logprobs(self, batch: Batch, *, temperature: float = 1.0, states: FrozenStates | None = None) -> Tensor:
        """Log-probabilities of the response tokens.

        Args:
            batch: tokens and response mask.
            temperature: logits are divided by it, as when the tokens were sampled.
            states: as for :meth:`hidden`.

        Returns:
            ``[B, T]`` float32 in nats, zero where the mask is False.
        """
        with self.backbone.autocast():
            hidden = self.hidden(batch, states=states)
            return _placed(token_logprobs(*self._predicting(batch, hidden), temperature=temperature), batch)

    def logprobs_and_entropies(
        self,
        batch: Batch,
        *,
        temperature: float = 1.0,
        entropy_gradient: bool = False,
        hidden: Tensor | None = None,
        states: FrozenStates | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`logprobs`, and the entropy of the distribution each token was drawn from.

        Args:
            batch: tokens and response mask.
            temperature: logits are divided by it.
            entropy_gradient: True: entropies carry a gradient too (for an entropy bonus).
            hidden: from :meth:`hidden` for this batch; None: computed here.
            states: as for :meth:`hidden`.

        Returns:
            two of ``[B, T]`` float32 in nats, zero where the mask is False.
        """
        with self.backbone.autocast():
            hidden = self.hidden(batch, states=states) if hidden is None else hidden
            logprobs, entropies = token_logprobs_and_entropies(
                *self._predicting(batch, hidden), temperature=temperature, gradient=entropy_gradient
            )
            return _placed(logprobs, batch), _placed(entropies, batch)

    def _predicting(self, batch: Batch, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Hidden states before the response tokens, these tokens, and the head's weight and bias."""
        row, column = batch.response_mask.nonzero(as_tuple=True)
        head = self.backbone.head
        return hidden[row, column - 1], batch.tokens[row, column], head.weight, getattr(head, "bias", None)

    def values(self, batch: Batch, *, hidden: Tensor | None = None, states: FrozenStates | None = None) -> Tensor:
        """Value of the state before each response token, ``[B, T]`` float32, zero where the mask is False.

        Args:
            batch: tokens and response mask.
            hidden: from :meth:`hidden` for this batch; None: computed here.
            states: as for :meth:`hidden`.
        """
        assert self.scalar is not None
        hidden = (self.hidden(batch, states=states) if hidden is None else hidden).to(self.scalar.weight.dtype)
        before = torch.zeros(batch.tokens.shape, dtype=torch.float32, device=hidden.device)
        before[:, 1:] = self.scalar(hidden[:, :-1]).squeeze(-1).float()
        return torch.where(batch.response_mask, before, torch.zeros((), device=hidden.device))

    def scores(self, batch: Batch, *, states: FrozenStates | None = None) -> Tensor:
        """One score per sequence, ``[B]`` float32: the first head at the last real token (end-of-turn included)."""
        return self.head_scores(batch, states=states)[:, 0]

    def head_scores(self, batch: Batch, *, states: FrozenStates | None = None) -> Tensor:
        """All heads at the last real token of each sequence, ``[B, heads]`` float32."""
        assert self.scalar is not None
        hidden = self.last_hidden(batch, states=states).to(self.scalar.weight.dtype)
        return self.scalar(hidden).float()

    def last_hidden(self, batch: Batch, *, states: FrozenStates | None = None) -> Tensor:
        """Hidden state of the last real token of each sequence, ``[B, H]`` float32."""
        hidden = self.hidden(batch, states=states)
        return hidden[torch.arange(batch.size, device=hidden.device), batch.lengths - 1].float()


def _placed(values: Tensor, batch: Batch) -> Tensor:
    """``[N]`` → ``[B, T]``: one number per response token at its place, zero elsewhere."""
    zeros = torch.zeros(batch.tokens.shape, dtype=torch.float32, device=values.device)
    return zeros.index_put(batch.response_mask.nonzero(as_tuple=True), values)
