"""Micro-batches cut to a memory limit: the count against tensors that were really kept, and what is refused."""

import json
import re
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig

from trimtab import fast_cpu
from trimtab.errors import ConfigError, ModelError
from trimtab.models import AdapterConfig, FrozenStates, ModelConfig, Role, collate
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.memory import _activations, fit_memory, model_shape, stage_gb
from trimtab.pipeline.plan import make_plan
from trimtab.pipeline.rates import fill_rates, rate_lines
from trimtab.testing import chat_messages, save_model, sentences, tiny_backbone, tiny_model, toy_recipe


@pytest.mark.parametrize("top", [None, 1])
def test_counted_activations_are_those_a_forward_pass_keeps(tmp_path, top):
    """Bytes of distinct storages that autograd holds, all layers against one fewer, so that only layers count."""
    fast_cpu.install()  # as in every run: the estimate counts what its functions keep
    backbone = tiny_backbone()
    role = Role.trainable(backbone, "policy", AdapterConfig(rank=2, top_layers=top), seed=0)
    result = [backbone.chat.conversation(chat_messages("sing", text)) for text in sentences(6)]
    batch = collate([e.tokens for e in result], [e.response_mask for e in result], backbone.device)
    sizes: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in backbone.model.parameters()}

    def hold(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    states = FrozenStates(backbone)
    states.of(batch)
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda t: t):
        role.last_hidden(batch, states=states).sum()
    shape = model_shape(ModelConfig(name=str(save_model(tmp_path / "model"))))
    counted = _activations(shape, AdapterConfig(rank=2, top_layers=top), batch.tokens.numel(), checkpointing=False)
    # A layer more is counted than kept, for what the backward pass holds for a moment; the toy's layers are few.
    layers = min(top or shape["layers"], shape["layers"])
    assert sum(sizes.values()) == pytest.approx(counted * layers / (layers + 1), rel=0.25)


def test_an_adapter_folder_has_the_shape_of_its_base(tmp_path):
    base, adapter = save_model(tmp_path / "model"), tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    assert model_shape(ModelConfig(name=str(adapter))) == model_shape(ModelConfig(name=str(base)))
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"does not name the model that the adapter is for; set"):
        model_shape(ModelConfig(name=str(adapter)))


def test_a_limit_sizes_what_does_not_say_its_own(tmp_path):
    recipe = toy_recipe(tmp_path)
    plain = load_recipe(recipe)
    assert fit_memory(plain) is plain
    wide = fit_memory(load_recipe(recipe, ["memory_gb=64"]))
    assert wide.sft.micro_batch_tokens > plain.sft.micro_batch_tokens
    own = fit_memory(load_recipe(recipe, ["memory_gb=64", "sft.micro_batch_tokens=77"]))
    assert own.sft.micro_batch_tokens == 77


def test_what_is_sized_fits_and_one_token_more_does_not(tmp_path):
    config = load_recipe(toy_recipe(tmp_path), ["memory_gb=0.8", "reward.cache_mb=0"])
    fitted = fit_memory(config)
    shape = model_shape(config.model)
    tokens = fitted.sft.micro_batch_tokens
    assert config.model.context < tokens < 8192
    assert stage_gb(config, fitted.sft, shape) <= 0.8 < stage_gb(config, config.sft, shape, tokens=tokens + 1)


def test_a_limit_too_small_for_one_sample_names_the_smallest_that_works(tmp_path):
    recipe = toy_recipe(tmp_path)
    config = load_recipe(recipe, ["memory_gb=0.5"])
    with pytest.raises(ConfigError, match=r"memory_gb is 0.5 but sft needs about 0\.\d GB with one sample") as caught:
        fit_memory(config)
    printed = str(caught.value)
    assert "gradient_checkpointing" in printed
    needed = max(float(number) for number in re.findall(r"about (\d+\.\d) GB", printed))
    assert fit_memory(load_recipe(recipe, [f"memory_gb={needed}"])).memory_gb == needed  # what it names is accepted
    with pytest.raises(ConfigError, match=r"memory_gb is 0\.5"):
        make_plan(config, recipe, tmp_path / "runs")


def test_a_critic_on_the_policys_states_has_no_weights_to_hold(tmp_path):
    config = load_recipe(toy_recipe(tmp_path), ["align.adapter={kind: full}"])
    shape = model_shape(config.model)
    own, shared = (stage_gb(config, config.align.model_copy(update={"shared_critic": s}), shape) for s in (False, True))
    assert own - shared == pytest.approx(4 * 4 * shape["parameters"] / 1e9)


def test_moments_of_8_bits_are_counted_for_each_optimiser(tmp_path):
    """8 bytes a weight become two codes and two shares of a scale for 256 numbers of 4 bytes."""
    path = toy_recipe(tmp_path)
    shape = {"parameters": 10**9, "layer": 10**7, "layers": 80, "head": 10**8, "vocabulary": 10, "width": 1024,
             "keys": 1, "inner": 1, "experts": 0, "expert": 0}  # fmt: skip
    needed = []
    for eight in ([], ["align.policy.state=8bit"], ["align.policy.state=8bit", "align.critic.state=8bit"]):
        config = load_recipe(
            path, ["align.adapter={kind: full}", "align.policy.lr=1e-5", "align.critic.lr=1e-5", *eight]
        )
        needed.append(stage_gb(config, config.align, shape))
        line = next(line for line in rate_lines(fill_rates(config)) if line.startswith("align.policy"))
        assert ("with 8-bit moments" in line) == bool(eight)
    saved = 8 - (1 + 4 / 256) * 2
    assert needed[0] - needed[1] == pytest.approx(saved) and needed[1] - needed[2] == pytest.approx(saved)


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ([], False),
        (["align.adapter={kind: full}"], True),
        (["align.adapter={kind: full}", "align.policy.state=8bit"], True),  # the critic's are left
        (["align.adapter={kind: full}", "align.policy.state=8bit", "align.critic.state=8bit"], False),
    ],
)
def test_moments_of_8_bits_are_advised_where_full_weights_have_others(tmp_path, settings, hint):
    config = load_recipe(toy_recipe(tmp_path), ["memory_gb=0.5", *settings])
    with pytest.raises(ConfigError, match=r"memory_gb is 0\.5") as caught:
        fit_memory(config)
    assert ("in policy and critic of online methods" in str(caught.value)) is hint


@pytest.mark.parametrize(("stage", "critics"), [("align", 1), ("sft", 0)])
def test_sharded_weights_are_counted_by_part_and_whole_where_they_are_gathered(tmp_path, stage: str, critics: int):
    """A billion weights in 80 layers of ten million, and tables of 200 million; everything else is next to nothing."""
    shape = {"parameters": 10**9, "layer": 10**7, "layers": 80, "head": 10**8, "vocabulary": 10, "width": 1, "keys": 1,
             "inner": 1, "experts": 0, "expert": 0}  # fmt: skip
    sets = [f"{stage}.adapter={{kind: full}}", "model.frozen_precision=float32"]
    recipe = toy_recipe(tmp_path, scale={"kind": "torchrun", "processes": 4})
    apart = {}
    for shard in ("false", "true"):
        several = [*sets, f"scale.shard={shard}", "sft.adapter={kind: full}"]
        config = load_recipe(recipe, several)
        for ranks in (None, 8):
            apart[shard, ranks] = stage_gb(config, getattr(config, stage), shape, ranks=ranks)
    models, frozen = 1 + critics, 4.0 * critics  # SFT trains the trunk itself
    head = 1.2 * 4 * 0.1  # the head's gradient, with the slack of temporary results
    reward = apart["false", None] - (0.7 + frozen + 16 * models + max(head, 1.2 * 4 * critics))
    assert apart["false", None] == apart["false", 8] and reward == pytest.approx(0, abs=0.01)
    for ranks in (4, 8):
        loaded = frozen + 4 * models
        held = (frozen + 16 * models) / ranks
        drawing = held + 4 + 1.2 * 4 if stage == "align" else 0.0  # the policy whole, and packed
        update = held + head + 1.2 * 4 * (4 * 0.01 + 3 * 0.2)
        assert apart["true", None if ranks == 4 else 8] == pytest.approx(0.7 + max(loaded, drawing, update), abs=0.01)


def test_a_sharded_trunk_is_counted_by_part_and_whole_where_it_is_gathered(tmp_path):
    """A billion weights of 2 bytes, as above; adapters are next to nothing."""
    shape = {"parameters": 10**9, "layer": 10**7, "layers": 80, "head": 10**8, "vocabulary": 1, "width": 1, "keys": 1,
             "inner": 1, "experts": 0, "expert": 0}  # fmt: skip
    everywhere = ["model.frozen_precision=bfloat16", "model.precision=bfloat16"]
    lora = [f"{stage}.adapter={{kind: lora, rank: 1}}" for stage in ("sft", "align")]
    recipe = toy_recipe(tmp_path, scale={"kind": "torchrun", "processes": 4})
    whole, parts = (load_recipe(recipe, [*everywhere, *lora, f"scale.shard={on}"]) for on in ("false", "true"))
    assert parts.sft is not None and parts.align is not None
    tokens = round(2e9 / (4 * 14 * 81))  # activations of 2 GB: 14 floats for each layer and the last states
    assert stage_gb(whole, parts.sft, shape, tokens=tokens) == pytest.approx(0.7 + 2 + 1.2 * 2, rel=0.01)
    passing = 2 * (3 * 0.01 + 0.2)  # three layers, embedding and head
    expected = 0.7 + 2 / 4 + 1.2 * (2 + passing)
    assert stage_gb(parts, parts.sft, shape, tokens=tokens) == pytest.approx(expected, rel=0.01)
    assert stage_gb(parts, parts.sft, shape) == pytest.approx(0.7 + 2 / 4 + 2, rel=0.01)  # for the check at the end
    drawing = 1.2 * (2 + 2 * 0.8)  # packed weights, and adapted ones merged
    assert stage_gb(parts, parts.align, shape) == pytest.approx(0.7 + 2 / 4 + 2 + drawing, rel=0.01)


def test_states_of_frozen_layers_are_counted(tmp_path):
    settings = ["align.adapter.top_layers=1", "align.prompts=6", "align.sampler.slots=1", "model.context=60"]
    config = load_recipe(toy_recipe(tmp_path), settings)
    shape, align = model_shape(config.model), config.align
    some, more = (stage_gb(config, align.model_copy(update={"prompts": n}), shape) for n in (6, 12))
    assert more - some == pytest.approx(6 * align.group * 60 * 4 * shape["width"] / 1e9)


def test_checkpointing_full_weights_and_longer_batches_cost_what_one_expects():
    shape = {"parameters": 10**9, "layer": 10**7, "layers": 80, "head": 10**8, "vocabulary": 10**5, "width": 1000,
             "keys": 1000, "inner": 4000, "experts": 0, "expert": 0}  # fmt: skip
    some, many = (_activations(shape, AdapterConfig(), n, checkpointing=False) for n in (1000, 2000))
    assert many == 2 * some
    assert _activations(shape, AdapterConfig(), 1000, checkpointing=True) < some / 10


@pytest.mark.parametrize(
    ("kind", "settings", "total", "active"),
    [("mixtral", {}, 46.7e9, 12.9e9), ("olmoe", {"intermediate_size": 1024}, 6.9e9, 1.3e9)],
)
def test_mixtures_are_counted_whole_and_by_what_a_token_goes_through(tmp_path, kind, settings, total, active):
    """Shapes and sizes are those of Mixtral-8x7B and OLMoE-1B-7B."""
    AutoConfig.for_model(kind, **settings).save_pretrained(tmp_path)
    shape = model_shape(ModelConfig(name=str(tmp_path)))
    assert shape["parameters"] == pytest.approx(total, rel=0.02)
    assert shape["active"] == pytest.approx(active, rel=0.02)


@pytest.mark.parametrize(("settings", "sums"), [([], 11), (["model.gradient_checkpointing=true"], 2)])
@pytest.mark.parametrize(("frozen", "width"), [("float32", 4), ("bfloat16", 2)])
def test_adapters_on_experts_are_counted(tmp_path, settings: list[str], sums: int, frozen: str, width: int):
    """8 experts of 3 · 1,000 · 500 weights in each of 10 layers: the sums with their adapters, and those themselves."""
    shape = {"parameters": 10**9, "layer": 10**8, "layers": 10, "head": 10**6, "vocabulary": 10, "width": 1000,
             "keys": 1000, "inner": 1000, "experts": 8, "expert": 500}  # fmt: skip
    recipe = toy_recipe(tmp_path)
    without, adapted = (
        stage_gb(config, config.sft, shape, tokens=10**5)
        for config in (
            load_recipe(recipe, [f"sft.adapter.experts={on}", f"model.frozen_precision={frozen}", *settings])
            for on in ("false", "true")
        )
    )
    weights, adapters = 8 * 3 * 1000 * 500, 10 * 4 * 8 * ((1000 + 2 * 500) + (500 + 1000))  # rank 4
    assert adapted - without == pytest.approx((16 * adapters + 1.2 * width * sums * weights) / 1e9)


LIMIT = 1.1
"""GB, of which activations are a good part with the model below."""


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, float, float]]:
    """By stage, trained in a process of its own: tokens of a micro-batch, GB when loaded, and the most GB."""
    folder = tmp_path_factory.mktemp("limit")
    model = save_model(folder / "model", tiny_model(layers=6, width=256, context=256))
    recipe = toy_recipe(folder, model={"name": str(model), "context": 256})
    done = subprocess.run(
        [sys.executable, "-c", _AT_THE_LIMIT, str(recipe), str(LIMIT)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {stage: tuple(values) for stage, *values in map(json.loads, done.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["reward", "align"])
def test_a_process_stays_below_its_limit(peaks: dict[str, tuple[int, float, float]], stage: str):
    """Two steps of a full micro-batch of the longest rows: the second holds the optimiser's state beside them."""
    tokens, loaded, peak = peaks[stage]
    assert tokens > 256 and loaded + 0.1 < peak <= LIMIT, (tokens, loaded, peak)


_AT_THE_LIMIT = """
import json, os, sys
from pathlib import Path
from trimtab.models import Backbone, Role
from trimtab import fast_cpu
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.memory import fit_memory
from trimtab.trainers import Ranking, answer_logprobs, train_preference, train_reward

def gb():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9

def train(stage):
    fast_cpu.install()
    settings = [f"memory_gb={limit}", f"{stage}.adapter={{kind: full}}", "reward.cache_mb=0"]
    if stage == "align":
        settings = [f"memory_gb={limit}", "align={method: dpo, adapter: {kind: full}}", "reward=null", "evaluate=null"]
    config = fit_memory(load_recipe(Path(recipe), settings))
    section, answers = getattr(config, stage), config.sample.answers
    batch = -(-section.micro_batch_tokens // (answers * 256))
    section = section.model_copy(update={"batch": batch, "epochs": 1})
    backbone = Backbone.load(config.model)
    role = Role(backbone, full=True, scalar_head=stage == "reward")
    rows = [[(7 * n + t) % 40 + 5 for t in range(256)] for n in range(2 * batch)]
    loaded = gb()
    rankings = [
        Ranking(id=str(n), sequences=[row[:128] + rows[(n + k) % len(rows)][128:] for k in range(answers)], weight=1.0,
                prompt_length=128, ranks=tuple(range(answers)), probability=None, margin=None)
        for n, row in enumerate(rows)
    ]
    if stage == "reward":
        train_reward(role, rankings, section, seed=0)
    else:
        train_preference(role, rankings, section, reference=answer_logprobs(role, rankings), seed=0)
    print(json.dumps([stage, section.micro_batch_tokens, loaded, gb()]), flush=True)

recipe, limit = sys.argv[1:]
for stage in ("reward", "align"):  # the parent imports once; a child's peak begins at what it is born with
    child = os.fork()
    if child == 0:
        train(stage)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
"""
