"""The cells of ``benchmarks.device``: each measures one thing with trimtab's own parts and says it in a line."""

import inspect
import time
from contextlib import suppress
from typing import Any

import torch
from torch.nn import functional

from benchmarks.device_model import SIZES, Setup, forget_peak, peak_gb, seconds
from trimtab.errors import Interrupted
from trimtab.models import AdapterConfig, Backbone, Encoded, ModelConfig, Role, collate
from trimtab.models.cache import SlotCache
from trimtab.models.head import token_logprobs
from trimtab.pipeline.config import RunConfig
from trimtab.pipeline.costs import Sizing
from trimtab.pipeline.machines import MACHINES, decoding_seconds
from trimtab.pipeline.memory import cached_numbers, model_shape, stage_gb
from trimtab.rollout import LocalSampler, SamplerConfig
from trimtab.testing import prompts
from trimtab.trainers import Checkpoints, OptimizerConfig, Place, Ranks, Session, SftConfig, train_sft
from trimtab.trainers.ranks import serve


def peaks(setup: Setup) -> str:
    """The best matrix product in both precisions, and the best copy."""
    size = 256 if setup.toy else 8192
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.randn(size, size, device=setup.device, dtype=dtype)
        setup.peak[str(dtype).removeprefix("torch.")] = 2 * size**3 / seconds(setup.device, lambda a=a: a @ a, times=6)
    source = torch.ones(2**20 if setup.toy else 2**30, device=setup.device)
    target = torch.empty_like(source)
    setup.peak["bytes"] = 2 * source.nbytes / seconds(setup.device, lambda: target.copy_(source), times=6)
    return (
        f"{setup.peak['bfloat16'] / 1e12:.3g} TFLOP/s bfloat16, {setup.peak['float32'] / 1e12:.3g} float32, "
        f"{setup.peak['bytes'] / 1e12:.3g} TB/s read and written"
    )


# Training ---------------------------------------------------------------------------------


def _examples(setup: Setup, size: str, count: int) -> list[Encoded]:
    """Conversations of random tokens, half a context long; all but the first token count."""
    draw = torch.Generator().manual_seed(0)
    length = setup.context // 2
    rows = torch.randint(SIZES[size][5], (count, length), generator=draw).tolist()
    return [Encoded(tokens=row, response_mask=[False] + [True] * (length - 1)) for row in rows]


def _role(setup: Setup, model: ModelConfig, adapter: str) -> Role:
    backbone = setup.backbone(model)
    if adapter == "full":
        return Role(backbone, full=True)
    return Role.trainable(backbone, "policy", AdapterConfig(), seed=0)


def _settings(setup: Setup, adapter: str, steps: int, batch: int) -> SftConfig:
    """So many optimiser steps on ``batch`` conversations each."""
    return SftConfig(
        adapter=AdapterConfig(kind="full" if adapter == "full" else "lora"),
        optimizer=OptimizerConfig(lr=1e-5),
        batch=batch,
        epochs=float(steps),
        micro_batch_tokens=8 * setup.context,
    )


def update(setup: Setup, size: str, adapter: str, frozen: str, *, checkpointing: bool) -> str:
    """SFT steps: time, share of the peak (recomputed layers count once), memory, and what ``trimtab plan`` says."""
    model = setup.model(size, frozen=frozen, checkpointing=checkpointing)
    steps, batch = 4, 4 if setup.toy else 32
    config = _settings(setup, adapter, steps, batch)
    role = _role(setup, model, adapter)
    forget_peak(setup.device)  # making the model takes more for a moment
    ends: list[float] = []
    session = Session(log=lambda metrics: ends.append(time.perf_counter()))
    examples = _examples(setup, size, batch)
    train_sft(role, examples, config, seed=0, session=session)
    spent = (ends[-1] - ends[0]) / (len(ends) - 1)  # the first step warms up
    tokens, shape = sum(len(e.tokens) for e in examples), model_shape(model)
    share = _operations(shape, adapter, tokens, setup.context // 2) / spent / setup.peak["bfloat16"]
    run = RunConfig(name="device", model=model, sft=config)
    gb = stage_gb(run, config, shape, accelerator=setup.device.type == "cuda")
    lower, upper = Sizing(config=run, recipe=setup.folder, shape=shape).training(config.adapter, head=True)
    planned = tokens * (lower + upper) / MACHINES[_machine(setup)].rate(model)
    return (
        f"{spent:.3g} s, {tokens / spent:.0f} tokens/s, {share:.0%} of the bfloat16 peak, "
        f"{peak_gb(setup.device):.1f} GB; planned {planned:.3g} s and {gb:.1f} GB"
    )


def _machine(setup: Setup) -> str:
    """The row of the table of machines that is closest: an H200, or the processor."""
    return "h200" if setup.device.type == "cuda" else "cpu"


def _operations(shape: dict[str, int], adapter: str, tokens: int, length: int) -> float:
    """What a step's mathematics needs: 2 operations a weight forward, 2 for states backward, 2 for trained weights.

    Attention: two products with the keys seen, length / 2 on average, twice that backward. Adapters are left out.
    """
    passes = 6 if adapter == "full" else 4
    weights = passes * (shape["layers"] * shape["layer"] + shape["head"])
    attention = 3 * 2 * 2 * shape["width"] * (length / 2) * shape["layers"]
    return tokens * float(weights + attention)


def resume(setup: Setup, size: str) -> str:
    """Four steps at once, and two and two around a checkpoint: the largest difference of a weight."""
    model, config = setup.model(size), _settings(setup, "lora", 4, 4)
    examples = _examples(setup, size, 4)
    whole = _role(setup, model, "lora")
    train_sft(whole, examples, config, seed=0)
    checkpoints, done = Checkpoints(setup.folder / "resume", "device"), [0]

    def log(metrics: dict[str, float]) -> None:
        done[0] += 1

    session = Session(log=log, checkpoints=checkpoints, stop_requested=lambda: done[0] == 2)
    with suppress(Interrupted):
        train_sft(_role(setup, model, "lora"), examples, config, seed=0, session=session)
    again = _role(setup, model, "lora")
    train_sft(again, examples, config, seed=0, session=Session(checkpoints=checkpoints))
    other = again.state()
    most = max(float((weight - other[name]).abs().max()) for name, weight in whole.state().items())
    return f"largest difference of a weight after a resume: {most:.3g}"


def one_rank(setup: Setup, size: str) -> str:
    """A group of one rank: the sum of an adapter-sized and of a gigabyte-sized tensor over NCCL (Gloo on a CPU)."""
    store, port = serve()
    place = Place(rank=0, size=1, local_rank=0, local_size=1, host="127.0.0.1", port=port, serves=False, attempt="0")
    group = Ranks(place, deadline=60.0)
    try:
        small = torch.ones(10**4 if setup.toy else 10**7, device=setup.device)
        large = torch.ones(10**5 if setup.toy else 2**28, device=setup.device)
        spent = [seconds(setup.device, lambda t=t: group.sum_("benchmark", [t])) for t in (small, large)]
        right = bool((small == 1).all()) and group.gather("benchmark", lambda: size) == [size]
    finally:
        group.leave()
        del store
    return (
        f"{'NCCL' if setup.device.type == 'cuda' else 'Gloo'}: {small.nbytes / 1e6:.0f} MB in {spent[0] * 1e3:.3g} ms, "
        f"{large.nbytes / 1e6:.0f} MB in {spent[1] * 1e3:.3g} ms; sums {'right' if right else 'WRONG'}"
    )


# Sampling ---------------------------------------------------------------------------------


def sampling(setup: Setup, size: str, batch: int) -> str:
    """Answers of equal length drawn together: tokens a second, share of the bandwidth, and what a plan assumes."""
    model, new = setup.model(size), 4 if setup.toy else 64
    backbone = setup.backbone(model)
    backbone.add_adapter("policy", AdapterConfig(), seed=0)
    sampler = LocalSampler(backbone, SamplerConfig(max_new_tokens=new, slots=batch))
    questions = prompts(batch)
    forget_peak(setup.device)
    spent = seconds(setup.device, lambda: sampler.generate(questions, adapter="policy", seed=0), times=2)
    shape = model_shape(model)
    length = max(
        len(r.prompt_tokens) + len(r.tokens) for r in sampler.generate(questions[:1], adapter="policy", seed=0)
    )
    read = new * 2.0 * (shape["parameters"] + batch * cached_numbers(shape, length))
    planned = decoding_seconds(MACHINES[_machine(setup)], model, shape, drawn=batch * new, together=batch)
    return (
        f"{batch * new / spent:.0f} tokens/s, {spent / new * 1e3:.3g} ms a step, "
        f"{read / spent / setup.peak['bytes']:.0%} of the bandwidth, {peak_gb(setup.device):.1f} GB; planned "
        f"{planned / new * 1e3:.3g} ms a step"
    )


@torch.no_grad()
def mismatch(setup: Setup, size: str) -> str:
    """The difference of log p of drawn tokens between sampler and trainer, with 1, 8 and 64 answers drawn together."""
    backbone = setup.backbone(setup.model(size))
    role = Role.trainable(backbone, "policy", AdapterConfig(), seed=0)
    for parameter in role.parameters().values():
        parameter.normal_(std=0.01)
    results = []
    for slots in (1, 2) if setup.toy else (1, 8, 64):
        sampler = LocalSampler(backbone, SamplerConfig(max_new_tokens=4 if setup.toy else 32, slots=slots))
        rollouts = sampler.generate(prompts(max(slots, 2 if setup.toy else 8)), adapter="policy", seed=0)
        batch = collate(
            [r.prompt_tokens + r.tokens for r in rollouts],
            [[False] * len(r.prompt_tokens) + [True] * len(r.tokens) for r in rollouts],
            setup.device,
        )
        own = role.logprobs(batch)[batch.response_mask].cpu()
        gap = own - torch.tensor([x for r in rollouts for x in r.logprobs])
        outside = float(((gap.exp() - 1).abs() > 0.1).float().mean())
        results.append(
            f"{slots}: mean {float(gap.abs().mean()):.2g}, most {float(gap.abs().max()):.2g}, {outside:.1%} of tokens "
            "outside ±10 %"
        )
    return "; ".join(results)


@torch.no_grad()
def graph(setup: Setup, size: str) -> str:
    """A decoding step of the whole trunk, launched by Python and replayed as a CUDA graph."""
    if setup.device.type != "cuda":
        raise RuntimeError("a CUDA graph needs a CUDA device")
    backbone: Backbone = setup.backbone(setup.model(size))
    slots, length = 32, 256
    cache = SlotCache(len(backbone.layers), slots, length)
    where = torch.full((slots,), length - 1, device=setup.device)
    cache.place(where, length)
    tokens = torch.ones(slots, 1, dtype=torch.int64, device=setup.device)
    mask = torch.ones(slots, 1, 1, length, dtype=torch.bool, device=setup.device)

    def step() -> torch.Tensor:
        output: Any = backbone.model.base_model(
            input_ids=tokens, position_ids=where[:, None], attention_mask=mask, past_key_values=cache, use_cache=True
        )
        return output.last_hidden_state

    eager = seconds(setup.device, step, times=10, warm=3)
    expected = step()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        out = step()
    replay = seconds(setup.device, captured.replay, times=10, warm=3)
    gap = float((out - expected).abs().max())
    return f"launched {eager * 1e3:.3g} ms, replayed {replay * 1e3:.3g} ms, largest difference {gap:.2g}"


# Parts ------------------------------------------------------------------------------------


def attention(setup: Setup) -> str:
    """Packed sequences forward and backward: a dense mask, as trimtab has it, against variable lengths."""
    heads, width, length, count = (2, 16, 8, 4) if setup.toy else (12, 128, 512, 16)
    total = length * count
    q, k, v = (
        torch.randn(total, heads, width, device=setup.device, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    segment = torch.arange(total, device=setup.device) // length
    mask = ((segment[:, None] == segment[None, :]) & torch.ones_like(segment[:, None] == segment).tril())[None, None]

    def dense() -> torch.Tensor:
        rows = (x.transpose(0, 1)[None] for x in (q, k, v))
        return functional.scaled_dot_product_attention(*rows, attn_mask=mask)[0].transpose(0, 1)

    spent = seconds(setup.device, lambda: dense().float().sum().backward())
    line = f"{count} sequences of {length} tokens, {heads} heads of {width}: dense mask {spent * 1e3:.3g} ms; varlen "
    try:
        from torch.nn.attention.varlen import varlen_attn

        ends = torch.arange(0, total + 1, length, device=setup.device, dtype=torch.int32)
        known = inspect.signature(varlen_attn).parameters
        causal: dict[str, Any] = {"is_causal": True} if "is_causal" in known else {"window_size": (-1, 0)}

        def varlen() -> torch.Tensor:
            return varlen_attn(q, k, v, ends, ends, length, length, **causal)  # type: ignore[return-value]

        gap = float((varlen() - dense()).detach().abs().max())
        spent = seconds(setup.device, lambda: varlen().float().sum().backward())
        return line + f"{spent * 1e3:.3g} ms, largest difference {gap:.2g}"
    except (ImportError, NotImplementedError, RuntimeError) as error:
        return line + f"cannot run ({type(error).__name__}: {str(error).splitlines()[0][:100]})"


def head(setup: Setup) -> str:
    """Log-probabilities of tokens and the gradient of their states: in chunks, as a whole table, and PyTorch's own."""
    count, width, vocabulary = (32, 16, 300) if setup.toy else (8192, 1536, 151936)
    states = torch.randn(count, width, device=setup.device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(vocabulary, width, device=setup.device, dtype=torch.bfloat16) / width**0.5
    targets = torch.randint(vocabulary, (count,), device=setup.device)

    def table() -> torch.Tensor:
        logits = functional.linear(states, weight).float()
        return torch.log_softmax(logits, dim=-1).gather(-1, targets[:, None]).squeeze(-1)

    ways: dict[str, Any] = {"in chunks": lambda: token_logprobs(states, targets, weight), "one table": table}
    own = getattr(functional, "linear_cross_entropy", None)
    if own is not None:
        ways["linear_cross_entropy"] = lambda: -own(states, weight, targets, reduction="none")
    expected, results = table().detach(), []
    for name, way in ways.items():
        try:
            forget_peak(setup.device)
            spent = seconds(setup.device, lambda way=way: way().sum().backward())
            gap = float((way().detach().float() - expected).abs().max())
            results.append(f"{name} {spent * 1e3:.3g} ms, {peak_gb(setup.device):.1f} GB, off by {gap:.2g}")
        except (RuntimeError, NotImplementedError, TypeError) as error:
            results.append(f"{name} cannot run ({type(error).__name__}: {str(error).splitlines()[0][:100]})")
    return "; ".join(results)
