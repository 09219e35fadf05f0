"""Tests, when a model is loaded, which arrangements of rows it computes correctly.

Packed rows, shared prompts, the sampler's slots and the cut between frozen and trained layers give the same results as
plain rows for attention with a mask. Recurrent layers, convolutions, distance biases and windows ignore our masks and
positions. So each arrangement runs once on a few tokens and is compared with transformers' forward pass on plain rows.
Arrangements that differ, or fail, are not used for this model. Padding on the right must be harmless for every model.
It is if attention is causal; a model that is not causal is refused.

A window (sliding attention, chunks, local attention) has an effect only in rows longer than the window. The probe is
longer than the window if that costs at most :data:`AFFORDABLE`. Otherwise a short probe covers rows up to the window,
and a larger ``model.context`` turns the arrangements off.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from trimtab.errors import ModelError
from trimtab.models.batch import Batch, block_diagonal_mask, collate, pack, padded
from trimtab.models.cache import SlotCache, repeated

if TYPE_CHECKING:
    from trimtab.models.backbone import Backbone

_log = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest difference of a hidden state from the plain row's, relative to its norm."""

AFFORDABLE = {"cpu": (1024, 2e10), "cuda": (16_384, 2e13)}
"""Limits of a probe's pass by kind of device: tokens, and tokens × parameters."""

PROVEN = frozenset({"LlamaForCausalLM"})
"""Architectures without windows for which the tests show every arrangement; loading them skips the probe."""

WINDOWS = "sliding_window sliding_window_size attention_window_size attention_chunk_size local_attention window_size"
"""Names of settings that limit how far back a layer attends."""


@dataclass(frozen=True, kw_only=True)
class Layouts:
    """Arrangements that give the same results as plain rows for one model."""

    packed: bool = True
    """Several sequences in a row, separated by a block-diagonal mask."""
    shared_prompts: bool = True
    """A prompt once, followed by all answers to it."""
    slots: bool = True
    """Decoding answers of different lengths together, in trimtab's cache with slots."""
    own_cache: bool = True
    """Decoding answers of equal length in the cache that transformers makes for the model."""
    split: bool = True
    """The frozen layers and those above as two modules; every cut is tested again when it is made."""
    off: Mapping[str, str] = field(default_factory=dict)
    """Reason why an arrangement is not used, by its name."""


def window_of(config: Any) -> int | None:
    """The shortest window of a text model's layers, in tokens; None: every layer sees the whole row."""
    if getattr(config, "use_sliding_window", True) is False:
        return None
    kinds = getattr(config, "layer_types", None)
    if kinds and not any(word in str(kind) for kind in kinds for word in ("sliding", "chunk", "local", "window")):
        return None
    sizes = [getattr(config, name, None) for name in WINDOWS.split()]
    return min((size for size in sizes if type(size) is int and size > 0), default=None)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Two answers to one prompt, and transformers' hidden states for each in a plain row."""

    prompt: list[int]
    answers: list[list[int]]
    covers_context: bool
    """False: ``model.context`` is longer than the model's window, but the probe is not."""
    expected: list[Tensor]
    """``[T, H]`` for each answer: final hidden states of prompt and answer."""

    @property
    def rows(self) -> list[list[int]]:
        """Prompt and answer, for each answer."""
        return [self.prompt + answer for answer in self.answers]

    def differs(self, states: Tensor, row: int, *, last: int | None = None) -> bool:
        """True: ``states``, ``[T, H]``, differ from the expected ones of a row, or of its ``last`` tokens."""
        expected = self.expected[row] if last is None else self.expected[row][-last:]
        error = (states.float() - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-12)
        return not bool((error <= TOLERANCE).all())  # NaN differs


@torch.no_grad()
def make_probe(backbone: "Backbone") -> Probe:
    """Tokens for a model's probe, and their hidden states from plain rows.

    Raises:
        ModelError: the model gives no hidden states.
    """
    config = backbone.model.config.get_text_config()
    window, context = window_of(config), backbone.chat.context
    prompt, first, second = 6, 4, 3
    covers_context = True
    if window is not None:
        # Rows in use either stay within the window, and only a shared row is longer, or go beyond it themselves.
        longest = (window + 8, 4, 3) if context > window else (max(2, window // 2), max(2, window // 2 - 1), 3)
        size = sum(p.numel() for p in backbone.model.parameters())
        most_tokens, most = AFFORDABLE.get(backbone.device.type, AFFORDABLE["cpu"])
        affordable = 2 * sum(longest) <= most_tokens and size * 2 * sum(longest) <= most
        covers_context = affordable or context <= window
        if affordable:
            prompt, first, second = longest
    tokens = _tokens(backbone, prompt + first + second)
    answers = [tokens[prompt : prompt + first], tokens[prompt + first :]]
    expected = []
    for answer in answers:
        row = torch.tensor([tokens[:prompt] + answer], device=backbone.device)
        try:
            expected.append(backbone.model.base_model(input_ids=row, use_cache=False).last_hidden_state[0].float())
        except (AttributeError, TypeError) as error:
            name = type(backbone.model).__name__
            raise ModelError(f"{name} gives no hidden states ({error}), which trimtab computes with") from error
    return Probe(prompt=tokens[:prompt], answers=answers, covers_context=covers_context, expected=expected)


def _tokens(backbone: "Backbone", count: int) -> list[int]:
    """Distinct tokens, as far as there are enough; none stands for an image, a sound or an end."""
    config = backbone.model.config
    special = {
        value
        for part in (config, config.get_text_config())
        for name, value in part.to_dict().items()
        if isinstance(value, int) and name.endswith(("_token_id", "_token_index", "_id"))
    }
    size = config.get_text_config().vocab_size
    plain = [token for token in range(min(size, 10_000)) if token not in special]
    order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(0)).tolist()
    return [plain[order[i % len(order)]] for i in range(count)]


@torch.no_grad()
def find_layouts(backbone: "Backbone") -> Layouts:
    """Try every arrangement; logs a line if some of them cannot be used.

    Raises:
        ModelError: tokens to the right of a token change its states, so the model is not causal.
    """
    window = window_of(backbone.model.config.get_text_config())
    name = type(backbone.model).__name__
    if name in PROVEN and window is None:
        return Layouts()
    probe = make_probe(backbone)
    padded = collate(probe.rows, [[True] * len(row) for row in probe.rows], backbone.device)
    states = backbone.hidden(padded.tokens, adapter=None)
    if any(probe.differs(states[row, : len(tokens)], row) for row, tokens in enumerate(probe.rows)):
        raise ModelError(
            f"{name}: what comes after a token changes the model's states for it, so it is not a causal language model "
            "and the log-probabilities of its answers are not defined"
        )
    trials: dict[str, Callable[[Backbone, Probe], bool]] = {
        "packed": _packed,
        "shared_prompts": _shared,
        "slots": _slots,
        "own_cache": _own_cache,
    }
    off: dict[str, str] = {}
    if not probe.covers_context:
        reason = f"model.context is longer than its window of {window} tokens, which is too long to try"
        off = dict.fromkeys([*trials, "split"], reason)
        del off["own_cache"]
    for layout, agrees in trials.items():
        if layout in off:
            continue
        try:
            if not agrees(backbone, probe):
                off[layout] = "its numbers differ from those of plain rows"
        except Exception as error:
            off[layout] = f"it fails ({(str(error).strip() or type(error).__name__).splitlines()[0][:120]})"
    if off:
        _log.warning(
            "%s computes rows on their own where other models take these arrangements: %s",
            name,
            "; ".join(f"{layout}: {reason}" for layout, reason in off.items()),
        )
    return Layouts(**{layout: False for layout in off}, off=off)


def _packed(backbone: "Backbone", probe: Probe) -> bool:
    rows = probe.rows
    batch = pack(rows, [[True] * len(row) for row in rows], sum(map(len, rows)), backbone.device)
    assert batch.segments is not None
    states = backbone.hidden(
        batch.tokens, adapter=None, attention_mask=block_diagonal_mask(batch.segments), position_ids=batch.positions
    )
    return not any(probe.differs(states[batch.segments == row], row) for row in range(len(rows)))


def _shared(backbone: "Backbone", probe: Probe) -> bool:
    rows = probe.rows
    batch = collate(rows, [[True] * len(row) for row in rows], backbone.device, prompt_lengths=[len(probe.prompt)] * 2)
    shared = batch.shared_prompts
    assert shared is not None
    states = shared.unpack(
        backbone.hidden(shared.tokens, adapter=None, attention_mask=shared.attention, position_ids=shared.positions)
    )
    return not any(probe.differs(states[row, : len(tokens)], row) for row, tokens in enumerate(rows))


def _slots(backbone: "Backbone", probe: Probe) -> bool:
    """Check as the sampler computes: a common start, both rows up to the last token, and a step of one token each."""
    base, rows, device = backbone.model.base_model, probe.rows, backbone.device
    backbone.activate(None)
    common, lengths = 2, [len(row) - 1 for row in rows]
    prefix = DynamicCache()
    base(input_ids=torch.tensor([rows[0][:common]], device=device), past_key_values=prefix, use_cache=True)
    prefill, rest = repeated(prefix, 2), padded([tokens[common:-1] for tokens in rows])
    states = base(input_ids=rest.to(device), past_key_values=prefill, use_cache=True).last_hidden_state
    for row, length in enumerate(lengths):
        before = torch.cat([probe.expected[row][:common], states[row, : length - common].float()])
        if probe.differs(torch.cat([before, probe.expected[row][-1:]]), row):
            return False
    cache = SlotCache(len(backbone.layers), 2, max(lengths) + 1)
    for row, length in enumerate(lengths):
        cache.fill(row, prefill, row, length)
    where = torch.tensor(lengths, device=device)
    seen = int(where.max()) + 1
    cache.place(where, seen)
    mask = torch.arange(seen, device=device)[None, :] <= where[:, None]
    states = base(
        input_ids=torch.tensor([row[-1:] for row in rows], device=device),
        position_ids=where[:, None],
        attention_mask=backbone.mask(mask[:, None, None, :]),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return not any(probe.differs(states[row], row, last=1) for row in range(2))


def _own_cache(backbone: "Backbone", probe: Probe) -> bool:
    """Check with the first row twice: all tokens except two at once, then one by one."""
    backbone.activate(None)
    tokens = torch.tensor([probe.rows[0]] * 2, device=backbone.device)
    states, cache = continued(backbone, tokens[:, :-2], None)
    if cache is None or probe.differs(torch.cat([states[0], probe.expected[0][-2:]]), 0):
        return False
    for place in (2, 1):
        at = tokens.shape[1] - place
        states, cache = continued(backbone, tokens[:, at : at + 1], cache)
        if cache is None or probe.differs(
            torch.cat([probe.expected[0][:at], states[1], probe.expected[0][at + 1 :]]), 0
        ):
            return False
    return True


def continued(
    backbone: "Backbone", tokens: Tensor, cache: tuple[str, Any] | None, *, keep: bool = True
) -> tuple[Tensor, tuple[str, Any] | None]:
    """Read tokens of rows of equal length with the model's own cache.

    Args:
        backbone: the model.
        tokens: ``[B, T]``, the tokens that follow those in the cache.
        cache: from the previous call; None: these are the first tokens.
        keep: False: no cache is made.

    Returns:
        final hidden states ``[B, T, H]``, and the cache; None: the model has none.
    """
    given = {} if cache is None else {cache[0]: cache[1]}
    output = backbone.model.base_model(input_ids=tokens, use_cache=keep, **given)
    if not keep:
        return output.last_hidden_state, None
    for name in ("past_key_values", "cache_params", "state"):
        held = getattr(output, name, None)
        if held is not None:
            return output.last_hidden_state, (name, held)
    return output.last_hidden_state, None


def one_row_each(batch: Batch) -> tuple[Tensor, Tensor]:
    """The sequences of packed rows, each in its own row.

    Args:
        batch: with ``segments``.

    Returns:
        ``[N, W]`` int64, the sequences, right-padded with zeros; and ``[B, T]`` int64, the index of each token
        among the N·W (padding: 0).
    """
    assert batch.segments is not None
    segments = batch.segments
    places = [
        (row, (segments[row] == segment).nonzero()[:, 0])
        for row in range(batch.size)
        for segment in segments[row].unique().tolist()
        if segment >= 0
    ]
    width = max(len(columns) for _, columns in places)
    tokens = batch.tokens.new_zeros(len(places), width)
    place = torch.zeros_like(batch.tokens)
    for number, (row, columns) in enumerate(places):
        tokens[number, : len(columns)] = batch.tokens[row, columns]
        place[row, columns] = torch.arange(len(columns), device=tokens.device) + number * width
    return tokens, place
