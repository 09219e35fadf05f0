"""The stages that train: supervised fine-tuning, reward model, alignment."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trimtab.errors import DataError
from trimtab.feedback import load_callable
from trimtab.files import write_atomic, write_json
from trimtab.models import (
    PASS_TOKENS,
    Backbone,
    Chat,
    Encoded,
    FrozenStates,
    Role,
    leave_out,
    load_tensors,
)
from trimtab.pipeline.annotator_votes import with_votes
from trimtab.pipeline.augmentation import augmented
from trimtab.pipeline.capability import CapabilityCheck
from trimtab.pipeline.config import RunConfig
from trimtab.pipeline.context import Context, Counts
from trimtab.pipeline.learned import write_learned
from trimtab.pipeline.monitoring import RunMonitor
from trimtab.pipeline.process import load_process_scorer
from trimtab.pipeline.remote import reading_context, remote_workers
from trimtab.pipeline.reward_models import (
    Part,
    counts_of,
    load_objectives,
    load_reward_models,
    reward_backbone,
    reward_parts,
)
from trimtab.pipeline.reward_result import read_reward_result, read_trained, write_reward_result
from trimtab.pipeline.reward_training import train_parts
from trimtab.pipeline.vote_files import LEARNED_THUMBS, thumbs_of
from trimtab.records import Demonstration, Preference, Prompt, Rating, load, read_records, write_records
from trimtab.records.weights import reward_weights
from trimtab.rollout import (
    FunctionReward,
    HttpReward,
    ModelReward,
    NamedRewards,
    ProcessReward,
    RewardModels,
    SamplerWorker,
    Scorer,
    ScorerWorker,
    http_reward,
    make_sampler,
)
from trimtab.storage.watched import TOKENS
from trimtab.trainers import (
    OFFLINE,
    Chosen,
    Fall,
    Judged,
    KtoConfig,
    Metrics,
    OnlineConfig,
    OpponentConfig,
    PairConfig,
    PolicyGradientConfig,
    PpoConfig,
    Ranking,
    RlConfig,
    RlRoles,
    critic_of,
    encode_preferences,
    encode_ratings,
    evaluate_kto,
    evaluate_preference,
    judged_from_rankings,
    mean_nll,
    reference_logprobs,
    split_holdout,
    train_kto,
    train_preference,
    train_rl,
    train_sft,
)


def run_sft(context: Context) -> tuple[Counts, list[str]]:
    """Fine-tune on demonstrations."""
    config = context.config.sft
    assert config is not None
    backbone = Backbone.load(context.config.model)
    source = context.config.data.demonstrations or context.config.data.preferences or ""
    if context.config.revise is not None:  # its file contains the helpful demonstrations too
        source = str(context.folder("revise") / "demonstrations.jsonl")
        loaded = load(source, kind=Demonstration, format="records")
    else:
        loaded = context.load(source, Demonstration)
    data = context.config.data
    heldout_ids = context.set_aside() if data.demonstrations is None or data.heldout is None else set()
    records = [r for r in loaded.records if Prompt.of(r.messages[:-1]).id not in heldout_ids]
    usable, encoded = [], []
    left_out: dict[str, Any] = {"too_long": 0, "unrendered": {}}
    for record in records:
        try:
            encoded.append(backbone.chat.examples(record.messages, untrained=record.untrained))
            usable.append(record)
        except DataError as error:
            leave_out(left_out, record.id, error)
    counted = context.left_out(left_out, len(records), "demonstrations")
    if not encoded:
        first = next(iter(left_out["unrendered"].values()), None)
        raise DataError(
            f"{source}: none of {loaded.rows} rows is a usable demonstration ({len(loaded.refused)} refused, "
            f"{counted['too_long']} too long, {counted['unrendered']} that the chat template cannot take"
            f"{f', the first: {first}' if first else ''})"
        )
    train, held = split_holdout([r.id for r in usable], config.holdout, context.seed("sft"))
    if config.adapter.kind == "full":
        role = Role(backbone, full=True)
    else:
        role = Role.trainable(backbone, "sft", config.adapter, seed=context.seed("sft"))
    heldout = [example for i in held for example in encoded[i]]
    examples = [example for i in train for example in encoded[i]]
    folder = context.folder("sft")
    write_records(folder / "heldout.jsonl", [usable[i] for i in held])
    before = mean_nll(Role(backbone), heldout) if heldout else None
    check = CapabilityCheck(context, "sft", Role(backbone))
    with context.training("sft", "fine-tuning") as session:
        train_sft(role, examples, config, seed=context.seed("sft"), session=session)
    after = mean_nll(role, heldout) if heldout else None
    role.save(folder / "weights.safetensors")
    write_json(folder / "sft.json", {"heldout_nll_before": before, "heldout_nll_after": after})
    counts = {
        "demonstrations": len(train),
        "held_out": len(held),
        "refused": len(loaded.refused),
        "set_aside": len(loaded.records) - len(records),
    } | counted
    return counts, ["weights.safetensors", "sft.json", "heldout.jsonl", *check.finish(role)]


def load_rewards(
    context: Context,
    trunk: Backbone,
    micro_batch_tokens: int = PASS_TOKENS,
    states: FrozenStates | None = None,
    *,
    heldout: bool = False,
) -> tuple[NamedRewards, RewardModels | None]:
    """The rewards that online alignment maximises, by name, and the reward models if they are one of them.

    Without a ``rewards`` section, the reward model is the only reward. A cost with a limit has weight 0, because the
    trainer sets its price. ``states``: states of the trunk's frozen layers, for reward models. ``heldout``: True:
    include the reward model that only judges, if the run has one.
    """
    models = process = None
    sources: dict[str, Any] = dict(context.config.rewards or {"reward_model": ModelReward()})
    functions = {}
    objectives = None if context.config.reward is None else context.config.reward.objectives
    scorer = load_objectives(context, trunk, micro_batch_tokens, states) if objectives else None
    for name, source in sources.items():
        if isinstance(source, FunctionReward):
            functions[name] = load_callable(source.path)
        elif isinstance(source, HttpReward):
            functions[name] = http_reward(source)
        elif isinstance(source, ProcessReward):
            process = process or load_process_scorer(context, trunk, micro_batch_tokens, states)
            functions[name] = process.reward(source)
        elif scorer is not None and source.objective is not None:
            functions[name] = scorer.reward(source.objective)
        else:
            models = load_reward_models(context, trunk, micro_batch_tokens, states, heldout=heldout)
            functions[name] = models.reward
    weights = reward_weights(context.config.model_dump(mode="json"))
    return NamedRewards(sources, functions, trunk.chat.decode, weights), models


def alignment_scorer(
    context: Context, trunk: Backbone, states: FrozenStates | None = None
) -> tuple[Scorer, NamedRewards, RewardModels | None]:
    """The scorer of online alignment's answers: the rewards, and numbers that are only logged."""
    assert isinstance(context.config.align, OnlineConfig)
    rewards, models = load_rewards(context, trunk, context.config.align.micro_batch_tokens, states, heldout=True)
    if models is None:
        return rewards, rewards, None
    return lambda rollouts: rewards(rollouts) | models.watched(rollouts), rewards, models


def run_reward(context: Context) -> tuple[Counts, list[str]]:
    """Train the reward models and measure them on held-out preferences."""
    config = context.config.reward
    assert config is not None
    backbone = reward_backbone(context, None)
    rankings, preferences, left_out = usable_rankings(
        context, backbone.chat, ties=config.ties, all_rounds=True, objectives=config.objectives
    )
    names: list[str] = []
    if config.annotators:
        rankings, names = with_votes(context, rankings, preferences)
        if ignored := sum(r.margin is not None for r in rankings):
            context.ui.say(f"  {ignored} preferences have a margin, which is not used: votes are explained one by one")
    prompts = [p.prompt.id for p in preferences]
    train, held = split_holdout(prompts, config.holdout, context.seed("reward"))
    parts = reward_parts(config, prompts, train, seed=context.seed("reward halves"))
    counts, tied = counts_of(parts, held), Counts()
    if config.augment is not None:
        parts, rankings, preferences, tied = _augment(context, backbone.chat, parts, rankings, preferences, train)
    if config.annotators:
        tied["votes"] = sum(len(rankings[i].votes) for i in train)
        context.ui.say(f"  {config.loss} learns from {tied['votes']} votes on pairs, of {len(names)} annotators")
    elif config.ties:
        tied["tied_pairs"] = sum(len(rankings[i].tied_pairs()) for i in train)
        strict_pairs = sum(len(rankings[i].pairs()) for i in train)
        context.ui.say(f"  {config.loss} learns from {tied['tied_pairs']} tied pairs and {strict_pairs} with a winner")
    result, files = train_parts(context, backbone, parts, rankings, preferences, annotators=names)
    write_reward_result(context.folder("reward"), result)
    models = {part.name: part.places for part in parts}
    learned = write_learned(context, "reward", preferences, rankings, models, batch=config.batch, ties=config.ties)
    return counts | left_out | tied, [*files, "reward.json", learned]


def usable_rankings(
    context: Context,
    chat: Chat,
    *,
    ties: bool = False,
    all_rounds: bool = False,
    objectives: Sequence[str] = (),
    none: bool = False,
) -> tuple[list[Ranking], list[Preference], Counts]:
    """The usable preferences, as token rankings and as records, and the number of those left out, by reason.

    ``ties``: True: preferences whose answers all tie are usable. ``all_rounds``: True: include preferences of earlier
    rounds, oldest first; False: only this round. ``objectives``: criteria that have a head each; preferences about
    others are left out. ``none``: True: accept that there are no preferences.
    """
    rounds = [*context.run.earlier(), context.run] if all_rounds else [context.run]
    files = [run.stage("preferences") / "preferences.jsonl" for run in rounds]
    preferences = [p for file in files for p in read_records(file, Preference)]
    if objectives:
        preferences = [p for p in preferences if p.criterion in objectives]
    rankings, usable, left_out = encode_preferences(chat, preferences, ties=ties, objectives=objectives)
    counted = context.left_out(left_out, len(preferences), "preferences")
    if left_out["tied"] or left_out["identical"] or left_out["identical_pairs"]:
        context.ui.say(
            f"  of {len(preferences)} preferences {left_out['tied']} are tied, {left_out['identical']} have identical "
            f"answers (in others {left_out['identical_pairs']} pairs do); left out"
        )
    if not rankings and not none:
        raise DataError(
            f"none of {len(preferences)} preferences can be learnt from ({left_out['too_long']} too long, "
            f"{len(left_out['unrendered'])} that the chat template cannot take, {left_out['tied']} tied, "
            f"{left_out['identical']} with identical answers); look at the data with `trimtab data check`, or raise "
            "model.context"
        )
    return rankings, usable, left_out | counted


def _augment(
    context: Context,
    chat: Chat,
    parts: list[Part],
    rankings: list[Ranking],
    preferences: list[Preference],
    train: Sequence[int],
) -> tuple[list[Part], list[Ranking], list[Preference], Counts]:
    """Add copies of training preferences; each part gets the copies of its own preferences."""
    config = context.config.reward
    assert config is not None and config.augment is not None
    training = [preferences[i] for i in train]
    copies, origins, counts_by_kind = augmented(
        training, config.augment, ties=config.ties, seed=context.seed("augment")
    )
    encoded, used, _ = encode_preferences(chat, copies, ties=config.ties, objectives=config.objectives)
    copy_index = {id(p): len(preferences) + i for i, p in enumerate(used)}
    copies_of: dict[int, list[int]] = {}
    for copy, origin in zip(copies, origins, strict=True):
        if id(copy) in copy_index:
            copies_of.setdefault(train[origin], []).append(copy_index[id(copy)])
    parts = [
        replace(part, places=[*part.places, *(c for i in part.places for c in copies_of.get(i, ()))]) for part in parts
    ]
    counts: Counts = {f"copies: {kind}": n for kind, n in counts_by_kind.items()}
    counts["copies left out: too long, or the same tokens"] = len(copies) - len(used)
    context.ui.say("  " + ", ".join(f"{name} {n}" for name, n in counts.items()))
    return parts, [*rankings, *encoded], [*preferences, *used], counts


def policy_role(context: Context, trunk: Backbone) -> Role:
    """The policy, at the reference's weights."""
    assert context.config.align is not None
    return Role.trainable(trunk, "policy", context.config.align.adapter, seed=context.seed("policy"))


def build_sampler(config: RunConfig, recipe: Path, run: Path) -> SamplerWorker:
    """The worker of a sampler process: the policy at the reference's weights."""
    assert isinstance(config.align, OnlineConfig)
    context = reading_context(config, recipe, run)
    role = policy_role(context, context.trunk())
    return SamplerWorker(role, make_sampler(role.backbone, config.align.sampler))


def build_scorer(config: RunConfig, recipe: Path, run: Path) -> ScorerWorker:
    """The worker of a scorer process: the rewards of alignment, and numbers that are only logged."""
    context = reading_context(config, recipe, run)
    return ScorerWorker(alignment_scorer(context, context.trunk())[0])


def run_align(context: Context) -> tuple[Counts, list[str]]:
    """Align the policy: online on its own answers, or offline on judged answers."""
    config = context.config.align
    assert config is not None
    if isinstance(config, OnlineConfig):
        return _align_online(context, config)
    return _align_offline(context, config)


def _align_online(context: Context, config: RlConfig) -> tuple[Counts, list[str]]:
    """Maximise the rewards of the policy's answers, with a penalty for diverging from the reference."""
    trunk = context.trunk()
    states = FrozenStates(trunk)
    score, rewards, models = alignment_scorer(context, trunk, states)
    policy = policy_role(context, trunk)
    critic = None
    if isinstance(config, PpoConfig):
        critic = critic_of(policy, trunk, config.adapter, seed=context.seed("critic"), shared=config.shared_critic)
        if config.critic_init == "reward_model":
            start_critic(context, critic)
    prompts, counts = context.prompts(trunk.chat, config.sampler.max_new_tokens)
    imitate, examples = _conversations(context, config, trunk.chat)
    folder = context.folder("align")
    write_atomic(folder / TOKENS, json.dumps(trunk.chat.token_texts(), ensure_ascii=False))  # for `trimtab watch`
    check = CapabilityCheck(context, "align", Role(trunk))
    title = f"aligning ({config.method.upper()})"
    with (
        context.training("align", title) as session,
        RunMonitor(context, config) as monitor,
        remote_workers(context, policy, build_sampler, build_scorer) as remote,
    ):
        if isinstance(config, OpponentConfig) and config.log_odds is None:
            config = config.model_copy(update={"log_odds": _log_odds(context, rewards, models)})
        end = train_rl(
            RlRoles(policy=policy, reference=Role(trunk), critic=critic),
            prompts,
            remote.scorer or score,
            config,
            seed=context.seed("align"),
            session=session,
            monitor=monitor,
            samples=folder / "samples",
            weights=rewards.weights,
            imitate=imitate,
            sampler=remote.sampler,
            states=states,
        )
    policy.save(folder / "weights.safetensors")
    files = ["weights.safetensors"]
    if critic is not None:
        critic.save(folder / "critic.safetensors")
        files.append("critic.safetensors")
    files += check.finish(policy)
    counts |= {"prompts": len(prompts), "steps": config.steps} | examples
    if isinstance(end, Fall):
        context.ui.say(
            f"  ALIGNMENT FELL APART, noticed at step {end.step}: {end.reason}. As align.guard.on_fall says, the run "
            f"continues with the last good weights, those after {end.good} of {config.steps} steps"
        )
        counts |= {"steps": end.good, "fell_apart_at_step": end.step}
    if isinstance(end, Chosen):
        context.ui.say(f"  the policy has the weights after step {end.step} of {config.steps}: {end.reason}")
        counts |= {"steps": end.step, "steps_made": end.ended}
    return counts, files


def _log_odds(context: Context, rewards: NamedRewards, models: RewardModels | None) -> float:
    """Log-odds of winning per unit of the weighted rewards; known only if a single reward model is the reward."""
    counting = [(name, source) for name, source in rewards.sources.items() if source.weight != 0]
    name, source = counting[0] if len(counting) == 1 else ("", None)
    if models is None or models.config is not None or not isinstance(source, ModelReward):
        return 1.0
    return read_reward_result(context.folder("reward")).std * source.std / abs(rewards.weights[name])


def _conversations(context: Context, config: RlConfig, chat: Chat) -> tuple[list[tuple[str, Encoded]], Counts]:
    """Conversations for PPO-ptx; empty for a recipe without it."""
    ptx = config.ptx if isinstance(config, PolicyGradientConfig) else None
    if ptx is None:
        return [], {}
    source = ptx.data or context.config.data.demonstrations or ""
    loaded, heldout_ids = context.load(source, Demonstration).records, context.set_aside()
    records = [r for r in loaded if Prompt.of(r.messages[:-1]).id not in heldout_ids]
    conversations: list[tuple[str, Encoded]] = []
    left_out: dict[str, Any] = {"too_long": 0, "unrendered": {}}
    for record in records:
        try:
            conversations += [(record.id, e) for e in chat.examples(record.messages, untrained=record.untrained)]
        except DataError as error:
            leave_out(left_out, record.id, error)
    counted = context.left_out(left_out, len(records), "conversations to imitate")
    if not conversations:
        raise DataError(f"{source}: none of {len(loaded)} conversations can be imitated by align.ptx; check the file")
    return conversations, {
        "imitated": len(records) - sum(counted.values()),
        "imitated_set_aside": len(loaded) - len(records),
    } | {f"imitated_{reason}": count for reason, count in counted.items()}


def _align_offline(context: Context, config: PairConfig | KtoConfig) -> tuple[Counts, list[str]]:
    """Learn from the preferences, and measure the objective on held-out preferences before and after."""
    trunk, folder = context.trunk(), context.folder("align")
    policy, reference = policy_role(context, trunk), Role(trunk)
    check = CapabilityCheck(context, "align", reference)
    if isinstance(config, KtoConfig) and context.config.data.ratings is not None:
        loaded, heldout_ids = context.load(context.config.data.ratings, Rating).records, context.set_aside()
        ratings = [r for r in loaded if Prompt.of(r.prompt.messages).id not in heldout_ids]
        judged, left_out = encode_ratings(trunk.chat, ratings)
        counted = context.left_out(left_out, len(ratings), "ratings")
        # Split by prompt, so that no prompt is on both sides.
        train, held = split_holdout([str(a.prompt) for a in judged], config.holdout, context.seed("align"))
        before, after = _kto(context, policy, reference, [judged[i] for i in train], [judged[i] for i in held], config)
        counts: Counts = {"ratings": len(train), "held_out": len(held)} | counted
        counts["set_aside"] = len(loaded) - len(ratings)
        return _aligned(context, policy, before, after, counts, check)
    thumbs = thumbs_of(context.run) if context.config.learns_from_thumbs else []
    rankings, preferences, left_out = usable_rankings(context, trunk.chat, none=bool(thumbs))
    judged, thumbs_left_out = encode_ratings(trunk.chat, thumbs)
    prompt_of = {t.id: t.prompt.id for t in thumbs}
    prompts = [p.prompt.id for p in preferences] + [prompt_of[a.id] for a in judged]
    split = split_holdout(prompts, config.holdout, context.seed("align"))
    train, held = ([i for i in part if i < len(preferences)] for part in split)
    counts = {"preferences": len(train), "held_out": len(held)} | left_out
    if isinstance(config, KtoConfig):
        answers, balanced = judged_from_rankings([rankings[i] for i in train])
        heldout, _ = judged_from_rankings([rankings[i] for i in held])
        counts |= {"answers": len(answers), "neither_liked_nor_disliked": balanced}
        if thumbs:
            train_thumbs, heldout_thumbs = (
                [judged[i - len(preferences)] for i in p if i >= len(preferences)] for p in split
            )
            answers, heldout = answers + train_thumbs, heldout + heldout_thumbs
            counts |= {"thumbs": len(train_thumbs), "thumbs_held_out": len(heldout_thumbs)}
            thumb_counts = context.left_out(thumbs_left_out, len(thumbs), "thumbs")
            counts |= {f"thumbs_{reason}": n for reason, n in thumb_counts.items() if n}
            write_json(
                folder / LEARNED_THUMBS,
                {"train": [a.id for a in train_thumbs], "held_out": [a.id for a in heldout_thumbs]},
            )
        before, after = _kto(context, policy, reference, answers, heldout, config)
        return _aligned(context, policy, before, after, counts, check)
    logprobs = None
    if OFFLINE[config.method].reference:
        logprobs = reference_logprobs(reference, rankings, folder, micro_batch_tokens=config.micro_batch_tokens)

    def part(indices: list[int]) -> Any:
        return [rankings[i] for i in indices], None if logprobs is None else [logprobs[i] for i in indices]

    (train_part, train_ref), (heldout_part, heldout_ref) = part(train), part(held)
    before = evaluate_preference(policy, heldout_part, config, reference=heldout_ref)
    with context.training("align", f"aligning ({config.method.upper()})") as session:
        seed = context.seed("align")
        train_preference(policy, train_part, config, reference=train_ref, seed=seed, session=session, start=reference)
    after = evaluate_preference(policy, heldout_part, config, reference=heldout_ref)
    write_learned(context, "align", preferences, rankings, {"align": train}, batch=config.batch)
    return _aligned(context, policy, before, after, counts, check)


def _kto(
    context: Context,
    policy: Role,
    reference: Role,
    answers: list[Judged],
    heldout: list[Judged],
    config: KtoConfig,
) -> tuple[Metrics, Metrics]:
    """Train on liked and disliked answers; returns the objective on held-out answers before and after."""
    before = evaluate_kto(policy, reference, heldout, config)
    with context.training("align", "aligning (KTO)") as session:
        train_kto(policy, reference, answers, config, seed=context.seed("align"), session=session)
    return before, evaluate_kto(policy, reference, heldout, config)


def _aligned(
    context: Context, policy: Role, before: Metrics, after: Metrics, counts: Counts, check: CapabilityCheck
) -> tuple[Counts, list[str]]:
    """Write what an offline method learned."""
    folder = context.folder("align")
    if before and after:
        context.ui.say(
            f"  held-out loss {before['loss']:.3f} → {after['loss']:.3f}, "
            f"implied accuracy {before['accuracy']:.1%} → {after['accuracy']:.1%}"
        )
    policy.save(folder / "weights.safetensors")
    write_json(folder / "align.json", {"heldout_before": before, "heldout_after": after})
    return counts, ["weights.safetensors", "align.json", *check.finish(policy)]


def start_critic(context: Context, critic: Role) -> None:
    """Give the critic the first reward model's weights, its head scaled to normalised rewards."""
    folder = context.folder("reward")
    model = read_trained(folder).models[0]
    state = load_tensors(folder / model.file)
    state["head.weight"] = state["head.weight"] / model.std
    state["head.bias"] = (state["head.bias"] - model.mean) / model.std
    critic.load_state(state)
