"""Held-out comparison: every model answers the same prompts, and the same judges score all answers."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from statistics import pstdev

import torch

from trimtab.algos import best_of_n_kl, best_of_n_kl_bound
from trimtab.evals import (
    REMOVALS,
    BestOf,
    Divergence,
    Evaluation,
    Gain,
    Interval,
    WinRow,
    alarms,
    answer_p_values,
    copies,
    edited,
    gain_parts,
    length_controlled,
    probe_table,
    win_rate,
    words,
)
from trimtab.feedback import Utility, bootstrap_interval
from trimtab.models import PASS_TOKENS, Backbone, Chat, FrozenStates, Role, load_tensors, scatter
from trimtab.pipeline.config import EvaluateConfig
from trimtab.pipeline.context import Context, Counts
from trimtab.pipeline.evaluation_result import FILE, write_evaluation
from trimtab.pipeline.labelling import CHUNK, sample_in_chunks
from trimtab.pipeline.learning import load_rewards, policy_role
from trimtab.pipeline.reporting import judges_of, spoken_names
from trimtab.records import Prompt, Rollout, write_records
from trimtab.records.weights import constrained_reward
from trimtab.rollout import NamedRewards, remove_states
from trimtab.trainers import OnlineConfig, tokens_of

MODELS = ("base", "sft", "start", "policy")
"""Models from the earliest to the latest; a run without SFT or alignment lacks one. Later rounds have ``start``, the
policy of the round before, instead of ``sft``."""

COMPARISONS = (
    ("policy", "base"),
    ("policy", "sft"),
    ("policy", "start"),
    ("sft", "base"),
    ("start", "base"),
    ("best_of", "sft"),
    ("best_of", "start"),
    ("best_of", "base"),
    ("policy", "best_of"),
)
"""Pairs that are compared if a run has both models; the first one is the headline."""

COST = "cost"
"""Key of the cost that has a limit, among an answer's scores."""

KEPT_TOKENS = 32_768
"""Tokens of answers whose frozen-layer states are stored between sampling, KL and scores."""

WORST = 5
"""Number of prompts named for each comparison: those on which the first model lost by most."""


def run_evaluate(context: Context) -> tuple[Counts, list[str]]:
    """Sample held-out answers from each model, score them and compare the models."""
    run = context.config
    config = run.evaluate
    assert config is not None
    folder = context.folder("evaluate")
    trunk = context.trunk()
    prompts, counts = context.heldout(trunk.chat, config.sampler.max_new_tokens)
    if config.prompts is not None and config.prompts < len(prompts):
        prompts = random.Random(context.seed("evaluate")).sample(prompts, config.prompts)
    answers: dict[str, list[Rollout]] = {}
    states = FrozenStates(trunk, limit=KEPT_TOKENS)

    def sample(name: str, backbone: Backbone, adapter: str | None = None) -> None:
        answers[name] = sample_in_chunks(
            context,
            backbone,
            prompts,
            config.sampler,
            group=1,
            stage="evaluate",
            name=name,
            adapter=adapter,
            states=states,
        )

    if context.start != "base" and config.pretrained:
        base = context.trunk(pretrained=True)
        sample("base", base)
        del base
    # All adapters first, so that KL and scores can use the states of the layers below them from sampling.
    policy = None if run.align is None else policy_role(context, trunk)
    rewards = load_rewards(context, trunk, states=states)[0] if run.reward is not None or run.rewards else None
    sample(context.start, trunk)
    kl: list[float] | None = None
    if policy is not None:
        policy.load_state(load_tensors(context.folder("align") / "weights.safetensors"))
        sample("policy", policy.backbone, policy.adapter)
        kl = kl_per_answer(Role(trunk), answers["policy"], config.sampler.temperature, states=states)
    best: BestOf | None = None
    if rewards is not None:
        if config.best_of is not None:
            answers["best_of"], best = _best_of_n(context, config, trunk, prompts, rewards, states)
        answers = _add_proxy(context, rewards, answers)
    gold = context.gold()
    if gold is not None:
        answers = add_gold(gold, answers)
    files = []
    for name, rollouts in answers.items():
        write_records(folder / f"answers-{name}.jsonl", rollouts)
        files.append(f"answers-{name}.jsonl")
    gain = None
    if config.gain and rewards is not None and policy is not None:
        gain = _gain(context, trunk.chat, rewards, answers)
    result = compare(answers, kl, has_gold=gold is not None, seed=context.seed("evaluate"))
    likelihood = None
    if config.pretrained and len(answers) > 1:
        if context.start != "base":
            del policy, rewards, trunk, states  # one model in memory at a time
            trunk = context.trunk(pretrained=True)
        likelihood = likelihood_per_token(Role(trunk), {n: answers[n] for n in result.models})
    result = result.model_copy(update={"likelihood": likelihood, "best_of": best, "gain": gain})
    write_evaluation(folder, result)
    for name in (*answers, "best-of"):
        remove_states(folder / "samples" / name)
    _say(context, result)
    return counts | {"prompts": len(prompts), "models": len(answers)}, [*files, FILE]


def _best_of_n(
    context: Context,
    config: EvaluateConfig,
    trunk: Backbone,
    prompts: Sequence[Prompt],
    rewards: NamedRewards,
    states: FrozenStates,
) -> tuple[list[Rollout], BestOf]:
    """The best of n answers of the model before alignment to each prompt, and the KL of this choice to the model."""
    n = config.best_of
    assert n is not None
    pool = sample_in_chunks(
        context,
        trunk,
        prompts,
        config.sampler,
        group=n,
        stage="evaluate",
        name="best-of",
        own=True,
        states=states,
    )
    answers = best_of(pool, _scores(context, rewards, pool), n)
    logprobs = torch.tensor([sum(r.logprobs) for r in answers])
    return answers, BestOf(n=n, kl=float(best_of_n_kl(logprobs, n).mean()), kl_bound=best_of_n_kl_bound(n))


def _add_proxy(
    context: Context, rewards: NamedRewards, answers: Mapping[str, Sequence[Rollout]]
) -> dict[str, list[Rollout]]:
    """All answers with their total reward and, if there is one, the cost that has a limit.

    Answers to one prompt are scored together, so that the prompt is computed once.
    """
    groups = list(zip(*answers.values(), strict=True))
    cost = constrained_reward(context.config.model_dump(mode="json"))
    scored = iter(
        {"proxy": rewards.total(named)} | ({} if cost is None else {COST: named[cost]})
        for named in _named_rewards(context, rewards, [r for group in groups for r in group])
    )
    rated = [[replace(r, rewards=r.rewards | next(scored)) for r in group] for group in groups]
    return {name: [group[i] for group in rated] for i, name in enumerate(answers)}


def _gain(context: Context, chat: Chat, rewards: NamedRewards, answers: Mapping[str, Sequence[Rollout]]) -> Gain:
    """Parts of the policy's gain in reward over the model before it; edits answers and scores them again."""
    models = [answers[context.start], answers["policy"]]
    changed: dict[tuple[str, int, int], Rollout] = {}
    for feature in REMOVALS:
        for number, rollouts in enumerate(models):
            for index, rollout in enumerate(rollouts):
                text = edited(rollout.text, feature)
                if text is not None:
                    tokens = chat.answer_tokens(rollout.prompt.messages, text, rollout.finish_reason)
                    changed[feature, number, index] = replace(rollout, text=text, tokens=tokens, logprobs=[], values=[])
    scores = dict(zip(changed, _scores(context, rewards, list(changed.values())), strict=True))
    scores_without = {
        feature: tuple([scores.get((feature, number, i)) for i in range(len(r))] for number, r in enumerate(models))
        for feature in REMOVALS
    }
    before, after = ([r.rewards["proxy"] for r in rollouts] for rollouts in models)
    return gain_parts(before, after, scores_without, seed=context.seed("evaluate"))  # type: ignore[arg-type]


def _say(context: Context, result: Evaluation) -> None:
    """Win rates, alarms and KL on the terminal."""
    run = context.config
    for row in result.win_rates:
        context.ui.say(
            f"  {row.model} over {row.against}, judged by {row.judge}: {row.rate:.1%} "
            f"[{row.low:.1%}, {row.high:.1%}] of {row.n} held-out prompts"
        )
    for alarm in alarms(result, names=spoken_names(run, context.run.number), judges=judges_of(run)) or ():
        context.ui.say(f"  ALARM: {alarm.name}: {alarm.message}")
    if result.costs:
        means = ", ".join(f"{name} {value:.3g}" for name, value in result.costs.items())
        context.ui.say(f"  mean of the cost that has a limit, which is not part of the reward: {means}")
    if best := result.best_of:
        context.ui.say(f"  best of {best.n}: KL {best.kl:.2f} nats by estimate, {best.kl_bound:.2f} at most")
    if result.kl is not None:
        context.ui.say(f"  KL per answer {result.kl.value:.2f} nats")


def _scores(context: Context, rewards: NamedRewards, rollouts: Sequence[Rollout]) -> list[float]:
    """Total reward of each answer."""
    return [rewards.total(named) for named in _named_rewards(context, rewards, rollouts)]


def _named_rewards(context: Context, rewards: NamedRewards, rollouts: Sequence[Rollout]) -> list[dict[str, float]]:
    """The named rewards of each answer, in batches of the size used in training."""
    align = context.config.align
    size = align.prompts * align.group if isinstance(align, OnlineConfig) else CHUNK
    return [x for i in range(0, len(rollouts), size) for x in rewards.whole(rollouts[i : i + size])]


def best_of(pool: Sequence[Rollout], scores: Sequence[float], n: int) -> list[Rollout]:
    """Of every ``n`` consecutive answers, the first with the highest score."""
    return [pool[max(range(i, i + n), key=lambda j: (scores[j], -j))] for i in range(0, len(pool), n)]


def add_gold(gold: Utility, answers: Mapping[str, Sequence[Rollout]]) -> dict[str, list[Rollout]]:
    """All answers with their score by the simulated gold utility."""
    return {
        name: [replace(r, rewards=r.rewards | {"gold": float(gold(r.prompt, r.completion))}) for r in rollouts]
        for name, rollouts in answers.items()
    }


@torch.no_grad()
def kl_per_answer(
    reference: Role, rollouts: Sequence[Rollout], temperature: float, *, states: FrozenStates | None = None
) -> list[float]:
    """Log π(answer) − log ref(answer) of each rollout, in nats; each is one sample of the KL per answer."""
    batch = tokens_of(rollouts, reference.backbone.device)
    sampled = scatter([r.logprobs for r in rollouts], batch.response_mask)
    sums = torch.zeros(batch.size)
    for index, part in batch.micro_batches(PASS_TOKENS):
        logprobs = reference.logprobs(part, temperature=temperature or 1.0, states=states)
        sums[index.cpu()] = (sampled[index, : logprobs.shape[1]] - logprobs).sum(dim=1).cpu()
    return sums.tolist()


@torch.no_grad()
def likelihood_per_token(pretrained: Role, answers: Mapping[str, Sequence[Rollout]]) -> dict[str, float]:
    """Mean log-probability of a token of each model's answers under the pretrained model at temperature 1, in nats.

    The answers of all models to one prompt are in the same pass, so that their prompt is computed once.
    """
    names = list(answers)
    rollouts = [r for group in zip(*answers.values(), strict=True) for r in group]
    batch = tokens_of(rollouts, pretrained.backbone.device)
    sums = torch.zeros(batch.size)
    for index, part in batch.micro_batches(PASS_TOKENS):
        sums[index.cpu()] = pretrained.logprobs(part).sum(dim=1).cpu()
    total = sums.view(-1, len(names)).sum(dim=0).tolist()
    tokens = {name: max(1, sum(len(r.tokens) for r in answers[name])) for name in names}
    return {name: value / tokens[name] for name, value in zip(names, total, strict=True)}


def compare(answers: dict[str, list[Rollout]], kl: list[float] | None, *, has_gold: bool, seed: int) -> Evaluation:
    """Win rates of all :data:`COMPARISONS` by each judge, KL, probes."""
    names = [name for name in MODELS if name in answers]
    judges = (["gold"] if has_gold else []) + (["proxy"] if "proxy" in answers[names[0]][0].rewards else [])
    pairs = [pair for pair in COMPARISONS if set(pair) <= set(answers)]
    if {"sft", "start"} & set(names):  # the start model of best-of-n
        pairs = [pair for pair in pairs if pair != ("best_of", "base")]
    divergence = None
    if kl:
        low, high = bootstrap_interval(kl, seed=seed)
        divergence = Divergence(value=sum(kl) / len(kl), low=low, high=high, n=len(kl), per_answer=tuple(kl))
    return Evaluation(
        models=tuple(names),
        judges=tuple(judges),
        win_rates=tuple(_win_row(answers, *pair, judge) for pair in pairs for judge in judges),
        kl=divergence,
        probes={
            name: probe_table(
                [r.completion for r in answers[name]],
                [len(r.tokens) for r in answers[name]],
                [r.prompt for r in answers[name]],
            )
            for name in names
        },
        p_values=answer_p_values(*(answers[names[i]] for i in (0, -2, -1)), seed=seed) if len(names) > 1 else {},
        copied={name: tuple(r.prompt.id for r in answers[name] if copies(r.prompt.text, r.text)) for name in names},
        means={
            name: {judge: sum(r.rewards[judge] for r in answers[name]) / len(answers[name]) for judge in judges}
            for name in names
        },
        spreads={name: {judge: pstdev(r.rewards[judge] for r in answers[name]) for judge in judges} for name in names},
        costs={
            name: sum(r.rewards[COST] for r in answers[name]) / len(answers[name])
            for name in answers
            if COST in answers[name][0].rewards
        },
    )


def _win_row(answers: Mapping[str, Sequence[Rollout]], model: str, against: str, judge: str) -> WinRow:
    """How often one model's answers have a higher score than another's, and the prompts on which they lost by most."""
    scores = {name: [r.rewards[judge] for r in answers[name]] for name in (model, against)}
    result = win_rate(scores[model], scores[against])
    losses = [
        (score - opponent, rollout.prompt.id)
        for score, opponent, rollout in zip(scores[model], scores[against], answers[model], strict=True)
        if score < opponent
    ]
    lengths = {name: [len(words(r.text)) for r in answers[name]] for name in (model, against)}
    equal = length_controlled(
        [(score > opponent) + (score == opponent) / 2 for score, opponent in zip(*scores.values(), strict=True)],
        [long - short for long, short in zip(*lengths.values(), strict=True)],
        [r.prompt.id for r in answers[model]],
    )
    return WinRow(
        model=model,
        against=against,
        judge=judge,
        **asdict(result),
        worst=tuple(prompt for _, prompt in sorted(losses)[:WORST]),
        equal_length=None if equal is None else Interval(value=equal.rate, low=equal.low, high=equal.high),
    )
