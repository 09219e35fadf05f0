"""Memory that a stage needs, counted from the model's shape; sizes micro-batches to fit a limit.

The memory that a layer keeps for its backward pass was counted tensor by tensor on a Llama-type layer, in floats per
token: residual stream and its norms 4·H, inputs of the projections 2·H, queries and attention output 2·H, keys and
values 2·K, MLP 4·I. Other current decoder layers keep about as much. For a mixture of experts, I is the width of the
experts that one token passes through.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trimtab.errors import ConfigError, ModelError, TrimtabError
from trimtab.models import PASS_TOKENS, AdapterConfig, ModelConfig
from trimtab.models.head import TABLE
from trimtab.models.loading import described_by
from trimtab.pipeline.config import RunConfig
from trimtab.pipeline.scale import parts_of_weights
from trimtab.rollout import SamplerConfig
from trimtab.trainers import (
    BcoConfig,
    KtoConfig,
    OfflineConfig,
    OnlineConfig,
    OnlineDpoConfig,
    OpponentConfig,
    OptimizerConfig,
    PpoConfig,
    ProcessConfig,
    RewardConfig,
    SftConfig,
    XpoConfig,
)
from trimtab.trainers.eight_bits import moment_bytes
from trimtab.trainers.rl_optional import resample_attempts

PROCESS = 0.7
"""GB that Python, torch and the tokenizer take."""

SLACK = 1.2
"""Ratio of measured peaks to counted bytes, due to temporary results and gaps between freed blocks."""

LARGEST = 8192
"""Micro-batches of more tokens than this are not faster."""

Section = SftConfig | RewardConfig | ProcessConfig | OfflineConfig | OnlineConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """How weights that are not trained are stored."""

    frozen: int = 4
    """Bytes of a frozen weight, and of a number in the cache of keys and values."""
    packed: bool = True
    """True: drawing answers needs a copy of the weights, packed for a CPU or owned by vLLM."""

    @classmethod
    def of(cls, config: ModelConfig, *, accelerator: bool = False, engine: str = "local") -> "Storage":
        """Storage of a model on a CPU or an accelerator, with the engine that draws its answers."""
        packed = not accelerator or engine == "vllm"
        return cls(frozen=2 if config.frozen_precision == "bfloat16" else 4, packed=packed)


def fit_memory(config: RunConfig) -> RunConfig:
    """The recipe with ``micro_batch_tokens`` of every stage set to the most that ``memory_gb`` allows.

    A recipe's own ``micro_batch_tokens`` is only checked. Without ``memory_gb`` nothing changes.

    Raises:
        ConfigError: a stage needs more than the limit even with its largest sample alone in a micro-batch, or for the
            answers it draws at once; the message gives the smallest limit that works.
    """
    if config.memory_gb is None:
        return config
    sections: dict[str, Section] = {}
    problems = []
    for name, section in _sections(config):
        shape = model_shape(_model(config, section))
        is_set = "micro_batch_tokens" in section.model_fields_set
        lowest = section.micro_batch_tokens if is_set else largest_sample(config, section)
        minimum = stage_gb(config, section, shape, tokens=lowest)
        if minimum > config.memory_gb:
            condition = (
                f"with {name}.micro_batch_tokens {lowest}"
                if is_set
                else f"with one sample (≤ {lowest} tokens) at a time"
            )
            problems.append(f"{name} needs about {_rounded_up(minimum)} GB {condition}")
            continue
        if not is_set:
            low, high = lowest, max(LARGEST, lowest)
            while low < high:  # find the largest size that fits
                middle = (low + high + 1) // 2
                fits = stage_gb(config, section, shape, tokens=middle) <= config.memory_gb
                low, high = (middle, high) if fits else (low, middle - 1)
            sections[name] = section.model_copy(update={"micro_batch_tokens": low})
    for name, sampler, answers in _drawing_stages(config):
        needed = drawing_gb(config, sampler, answers)
        if needed > config.memory_gb:
            problems.append(f"{name} needs about {_rounded_up(needed)} GB with {name}.sampler.slots {sampler.slots}")
    if problems:
        moments = "store their moments in 8 bits (state: 8bit in optimizer; in policy and critic of online methods), "
        raise ConfigError(
            f"memory_gb is {config.memory_gb:g} but " + "; ".join(problems) + ". Raise memory_gb, or lower "
            f"model.context ({config.model.context}) or sampler.slots or cache_mb, train adapters instead of all "
            f"weights, {moments if _has_wide_moments(config) else ''}or set model.gradient_checkpointing"
        )
    return config.model_copy(update=sections)


def _rounded_up(gb: float) -> str:
    """The number with one decimal, rounded up, so that this limit would be accepted."""
    return f"{math.ceil(gb * 10) / 10:.1f}"


def stages_gb(config: RunConfig, *, accelerator: bool = False, ranks: int | None = None) -> dict[str, float]:
    """Memory of each stage that trains or draws answers, in 10⁹ bytes, by its name.

    Args:
        config: the recipe.
        accelerator: True: models are on an accelerator.
        ranks: as for :func:`stage_gb`.
    """
    needed = {
        name: stage_gb(config, section, model_shape(_model(config, section)), accelerator=accelerator, ranks=ranks)
        for name, section in _sections(config)
    }
    return needed | {
        name: drawing_gb(config, sampler, answers, accelerator=accelerator)
        for name, sampler, answers in _drawing_stages(config)
    }


def largest_sample(config: RunConfig, section: Section) -> int:
    """Most tokens that a micro-batch cannot split; an upper bound, because the data is not read yet.

    That is one sequence; for rankings and pairs, all answers after one prompt.
    """
    context = _model(config, section).context
    if isinstance(section, OnlineDpoConfig | XpoConfig):
        return 2 * context
    if isinstance(section, RewardConfig | OfflineConfig) and not isinstance(section, KtoConfig):
        if config.sample is not None and config.data.preferences is None:
            return context + (config.sample.answers - 1) * min(config.sample.sampler.max_new_tokens, context)
        return 2 * context
    return context


def stage_gb(
    config: RunConfig,
    section: Section,
    shape: dict[str, int],
    *,
    tokens: int | None = None,
    accelerator: bool = False,
    ranks: int | None = None,
) -> float:
    """Memory of a training stage, in 10⁹ bytes: an estimate.

    Args:
        config: the recipe.
        section: the stage's section.
        shape: shape of its model, see :func:`model_shape`.
        tokens: tokens of a micro-batch; None: as the section says.
        accelerator: True: its model is on an accelerator.
        ranks: number of ranks that divide sharded weights; None: the processes of the recipe.
    """
    context = _model(config, section).context
    engine = section.sampler.engine if isinstance(section, OnlineConfig) else "local"
    storage = Storage.of(_model(config, section), accelerator=accelerator, engine=engine)
    tokens = max(tokens or section.micro_batch_tokens, largest_sample(config, section))
    full = section.adapter.kind == "full"
    parts = (ranks or parts_of_weights(config.scale)) if config.scale.shard else 1
    weights = 4 * shape["parameters"]
    untouched = storage.frozen * shape["parameters"]
    trained = _trained_bytes(shape, section.adapter, _optimizer(section), parts)
    frozen = 0 if full and isinstance(section, SftConfig) else untouched  # only SFT trains the trunk itself
    divided = (
        0 if full and isinstance(section, RewardConfig | ProcessConfig) else frozen
    )  # of it, what the ranks divide
    resident = frozen - divided + divided / parts + trained
    critic = 0.0
    if isinstance(section, PpoConfig) and not section.shared_critic:  # a separate critic is as large as the policy
        critic = _trained_bytes(shape, section.adapter, section.critic, parts)
    resident += critic
    if isinstance(section, OfflineConfig | OnlineConfig) and section.reference_update is not None:  # its own weights
        resident += weights if full else 4 * _adapted(shape, section.adapter)
    checkpointing = config.model.gradient_checkpointing
    update = _activations(shape, section.adapter, tokens, checkpointing=checkpointing)
    update += storage.frozen * _experts_with_adapters(shape, section.adapter, checkpointing=checkpointing)
    if not isinstance(section, RewardConfig | ProcessConfig):
        update += 2 * 4 * min(tokens * shape["vocabulary"], TABLE) + (4 * shape["head"] if full else 0)
    if section.adapter.top_layers is not None and isinstance(section, RewardConfig | OfflineConfig):
        update += section.cache_mb * 1e6 / SLACK
    if parts > 1:
        update += _gathered_layers(shape) if full else _gathered_frozen_layers(shape, storage)
    update = max(update, _forward_pass(shape))
    drawing = 0.0
    if isinstance(section, OnlineConfig):
        resident += _reward_model(config)
        answers = min(max(section.sampler.slots, section.group), section.prompts * section.group)
        if (section.adapter.top_layers or shape["layers"]) < shape["layers"]:
            resident += (
                storage.frozen * shape["width"] * section.prompts * section.group * context
            )  # states of the frozen layers
        drawing = _sampling(shape, answers, context, storage, merged=0 if full else _adapted(shape, section.adapter))
    loaded = gathered = 0.0
    if parts > 1:
        copies = (2 if critic else 1) * weights if full else 0
        absent = trained + critic if full else 0  # nothing is sharded or trained yet
        loaded = copies + divided - divided / parts - absent
        gathered = _gathered_models(section, weights, divided) if full else divided
    return PROCESS + (resident + max(loaded, SLACK * update, SLACK * drawing + gathered)) / 1e9


def drawing_gb(config: RunConfig, sampler: SamplerConfig, answers: int | None, *, accelerator: bool = False) -> float:
    """Memory of a stage that draws ``answers`` (None: more than there are slots) and scores them, in 10⁹ bytes.

    Counted for the evaluation, which needs most: the policy's own weights if all are trained, and the reward model.
    """
    shape = model_shape(config.model)
    slots = sampler.slots if answers is None else min(sampler.slots, answers)
    full = any(section.adapter.kind == "full" for _, section in _sections(config))
    storage = Storage.of(config.model, accelerator=accelerator, engine=sampler.engine)
    resident = (storage.frozen + (4 if full else 0)) * shape["parameters"] + _reward_model(config)
    adapted = [_adapted(shape, section.adapter) for name, section in _sections(config) if name in ("sft", "align")]
    drawing = _sampling(shape, slots, config.model.context, storage, merged=0 if full else max(adapted, default=0))
    return PROCESS + (resident + SLACK * max(drawing, _forward_pass(shape))) / 1e9


def model_shape(config: ModelConfig) -> dict[str, int]:
    """Parameters, layers, widths and vocabulary from the model's configuration; no weights are loaded.

    ``active`` and ``active_layer`` are the parameters that one token passes through; for mixtures of experts they are
    fewer than ``parameters`` and ``layer``. In such models, layers without experts are counted as if they had them.
    """
    from transformers import AutoConfig

    try:
        loaded = AutoConfig.from_pretrained(described_by(config.name)).get_text_config()
    except ModelError:
        raise
    except Exception as error:
        raise TrimtabError(f"{config.name}: its configuration cannot be read ({str(error).splitlines()[0]})") from error
    width, layers, vocabulary = loaded.hidden_size, loaded.num_hidden_layers, loaded.vocab_size
    inner = getattr(loaded, "intermediate_size", None) or 4 * width
    heads = loaded.num_attention_heads
    keys = width * (getattr(loaded, "num_key_value_heads", None) or heads) // heads
    experts = _setting(loaded, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    if False in (getattr(loaded, "is_moe", None), getattr(loaded, "enable_moe_block", None)):
        experts = 0  # the family can have experts, but this model has none
    expert = shared = 0
    if experts > 1:
        expert = _setting(loaded, "moe_intermediate_size", "expert_ffn_hidden_size") or inner
        shared = _setting(loaded, "shared_expert_intermediate_size", "shared_intermediate_size")
        shared = shared or expert * _setting(loaded, "n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
        chosen = _setting(loaded, "num_experts_per_tok", "top_k_experts", "moe_top_k", "moe_topk", "moe_k") or 1
        inner = shared + expert * chosen
    active = 2 * width * width + 2 * width * keys + 3 * width * inner
    layer = active + (3 * width * (experts * expert + shared - inner) if experts > 1 else 0)
    tied = 1 if getattr(loaded, "tie_word_embeddings", True) else 2
    rest = tied * vocabulary * width
    return {
        "parameters": layers * layer + rest,
        "layer": layer,
        "active": layers * active + rest,
        "active_layer": active,
        "experts": experts if experts > 1 else 0,
        "expert": expert,
        "layers": layers,
        "head": vocabulary * width,
        "vocabulary": vocabulary,
        "width": width,
        "keys": keys,
        "inner": inner,
    }


def _setting(config: Any, *names: str) -> int:
    """The first of these settings that is a number in a model's configuration; 0: none is."""
    return next((value for value in (getattr(config, name, None) for name in names) if type(value) is int), 0)


def _drawing_stages(config: RunConfig) -> Iterator[tuple[str, SamplerConfig, int | None]]:
    """Stages that draw answers and train nothing: name, sampler settings, and most answers."""
    for name in ("revise", "sample", "evaluate"):
        section = getattr(config, name)
        if section is not None:
            per_prompt = section.answers if name == "sample" else section.best_of or 1 if name == "evaluate" else 1
            answers = None if section.prompts is None else section.prompts * per_prompt
            yield name, section.sampler.model_copy(update={"slots": max(section.sampler.slots, per_prompt)}), answers


def _reward_model(config: RunConfig) -> int:
    """Bytes of the reward model's weights if they are not adapters on the policy's trunk."""
    if config.reward is None or (config.reward.model is None and config.reward.adapter.kind != "full"):
        return 0
    model = config.reward.model or config.model
    width = 4 if config.reward.adapter.kind == "full" else Storage.of(model).frozen
    return width * model_shape(model)["parameters"]


def _sections(config: RunConfig) -> Iterator[tuple[str, Section]]:
    for name in ("sft", "reward", "process", "align"):
        section = getattr(config, name)
        if section is not None:
            yield name, section


def _model(config: RunConfig, section: Section) -> ModelConfig:
    section_model = getattr(section, "model", None)
    return section_model if isinstance(section_model, ModelConfig) else config.model


def _optimizer(section: Section) -> OptimizerConfig:
    """The optimiser of a section's model; a critic has a separate one."""
    return section.policy if isinstance(section, OnlineConfig) else section.optimizer


def _has_wide_moments(config: RunConfig) -> bool:
    """True: a section trains all weights and stores moments in 32 bits."""
    full = [section for _, section in _sections(config) if section.adapter.kind == "full"]
    critics = [s.critic for s in full if isinstance(s, PpoConfig) and not s.shared_critic]
    return any(optimizer.state == "32bit" for optimizer in [*map(_optimizer, full), *critics])


def _trained_bytes(shape: dict[str, int], adapter: AdapterConfig, optimizer: OptimizerConfig, parts: int) -> float:
    """Bytes of trained weights in float32, their gradients and both moments; for full weights, 1/``parts`` of them."""
    full = adapter.kind == "full"
    numbers = shape["parameters"] / parts if full else _adapter_parameters(shape, adapter)
    columns = shape["width"] if full else adapter.rank  # of an adapter's narrower matrices
    return numbers * (8 + (moment_bytes(columns=columns) if optimizer.state == "8bit" else 8))


def _adapter_parameters(shape: dict[str, int], adapter: AdapterConfig) -> int:
    width, keys, inner = shape["width"], shape["keys"], shape["inner"]
    sides = 2 * (width + width) + 2 * (width + keys) + 3 * (width + inner)  # in + out of the seven projections
    if adapter.experts:
        sides += shape["experts"] * (2 * width + 3 * shape["expert"])  # gate and up are one matrix of each expert
    return adapter.rank * sides * (adapter.top_layers or shape["layers"])


def _adapted(shape: dict[str, int], adapter: AdapterConfig) -> int:
    """Number of weights that the adapter changes."""
    layer = shape["layer"] - (0 if adapter.experts else _expert_weights(shape))
    return layer * min(adapter.top_layers or shape["layers"], shape["layers"])


def _expert_weights(shape: dict[str, int]) -> int:
    """Number of weights of a layer's experts."""
    return 3 * shape["width"] * shape["expert"] * shape["experts"]


def _experts_with_adapters(shape: dict[str, int], adapter: AdapterConfig, *, checkpointing: bool) -> int:
    """Numbers in the sums of experts' weights and adapters, which the backward pass needs, and in one layer's gradient.

    With checkpointing, only one layer's sum exists at a time.
    """
    if adapter.kind == "full" or not adapter.experts:
        return 0
    layers = min(adapter.top_layers or shape["layers"], shape["layers"])
    return _expert_weights(shape) * (2 if checkpointing else layers + 1)


def _activations(shape: dict[str, int], adapter: AdapterConfig, tokens: int, *, checkpointing: bool) -> float:
    width, layers = shape["width"], min(adapter.top_layers or shape["layers"], shape["layers"])
    layer = 8 * width + 2 * shape["keys"] + 4 * shape["inner"]
    floats = layers * width + 2 * layer if checkpointing else (layers + 1) * layer
    return 4.0 * tokens * floats


def _gathered_models(section: Section, policy: float, reference: float) -> float:
    """Bytes of the models that are whole together, for passes that a rank makes alone; all weights are trained.

    Online methods gather one model after the other, unless the reference draws answers or other prompts are tried.
    """
    if isinstance(section, OnlineConfig):
        both = isinstance(section, OpponentConfig) or resample_attempts(section) > 0
        return policy + (reference if both else 0)
    if isinstance(section, KtoConfig):
        return policy + reference
    return policy if isinstance(section, BcoConfig) else 0


def _gathered_layers(shape: dict[str, int]) -> float:
    """What a rank holds temporarily of trained weights: two layers with gradients; embedding and head three times.

    The three copies are weights, gradients, and the copy that is summed.
    """
    rest = shape["parameters"] - shape["layers"] * shape["layer"]
    return 4.0 * (4 * shape["layer"] + 3 * rest)


def _gathered_frozen_layers(shape: dict[str, int], storage: Storage) -> float:
    """What a rank holds temporarily of frozen weights: three layers, two of them just received; embedding and head."""
    rest = shape["parameters"] - shape["layers"] * shape["layer"]
    return storage.frozen * (3 * shape["layer"] + rest)


def _forward_pass(shape: dict[str, int]) -> float:
    """A forward pass without training: what one layer needs, and what it passes on."""
    return 4.0 * PASS_TOKENS * 2 * (8 * shape["width"] + 2 * shape["keys"] + 4 * shape["inner"])


def _sampling(shape: dict[str, int], answers: int, context: int, storage: Storage, *, merged: int) -> float:
    """Packed weights, ``merged`` weights that are copied to add the adapter, and the cache."""
    copies = storage.frozen * (merged + shape["parameters"] * storage.packed)
    return copies + storage.frozen * answers * cached_numbers(shape, context)


def cached_numbers(shape: dict[str, int], tokens: int) -> float:
    """Number of floats in the keys and values of this many tokens."""
    return 2.0 * tokens * shape["layers"] * shape["keys"]
