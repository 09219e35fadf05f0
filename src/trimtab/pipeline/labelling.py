"""From prompts to preferences: sampled answers, judgements, and their aggregation."""

from collections import Counter
from collections.abc import Sequence
from functools import partial

from trimtab.errors import DataError, Interrupted
from trimtab.feedback import aggregate, agreement_report, simulate
from trimtab.files import write_json
from trimtab.models import Backbone, FrozenStates
from trimtab.pipeline.ai_labels import run_ai_label
from trimtab.pipeline.config import HumanConfig
from trimtab.pipeline.context import Context, Counts
from trimtab.pipeline.objectives import of_criteria, unnamed
from trimtab.pipeline.ui import Bar
from trimtab.pipeline.vote_files import thumbs_of
from trimtab.records import Comparison, Judgement, Preference, Prompt, Rollout, read_records, write_records
from trimtab.rollout import SamplerConfig, load_rollouts, make_sampler, save_rollouts
from trimtab.trainers.shares import drawn_by_share

CHUNK = 256
"""Answers sampled between two saves in a stage that only samples, or scored at once if training sets no number."""

REFILLS = 4
"""Minimum number of slot refills per saved chunk, because the last answers of a chunk leave slots idle."""


def run_sample(context: Context) -> tuple[Counts, list[str]]:
    """Draw several answers to each prompt from the fine-tuned model."""
    config = context.config.sample
    assert config is not None
    backbone = context.trunk()
    prompts, counts = context.prompts(backbone.chat, config.sampler.max_new_tokens)
    prompts = prompts[: config.prompts] if config.prompts else prompts
    rollouts = sample_in_chunks(
        context, backbone, prompts, config.sampler, group=config.answers, stage="sample", name="answers"
    )
    items: list[Comparison] = []
    alike = 0
    for start in range(0, len(rollouts), config.answers):
        group = rollouts[start : start + config.answers]
        distinct = {r.text: r for r in group if r.text}
        if len(distinct) < 2:
            alike += 1
            continue
        items.append(Comparison.of(group[0].prompt, tuple(r.completion for r in distinct.values())))
    if alike:
        context.ui.say(f"  {alike} prompts got fewer than two different answers; nothing to compare, left out")
    folder = context.folder("sample")
    write_records(folder / "comparisons.jsonl", items)
    return counts | {"prompts": len(prompts), "answers": len(rollouts), "items": len(items), "alike": alike}, [
        "comparisons.jsonl"
    ]


def sample_in_chunks(
    context: Context,
    backbone: Backbone,
    prompts: Sequence[Prompt],
    config: SamplerConfig,
    *,
    group: int,
    stage: str,
    name: str,
    adapter: str | None = None,
    own: bool = False,
    states: FrozenStates | None = None,
) -> list[Rollout]:
    """Sample answers, saving after every few prompts, so that a killed process repeats at most that.

    All samples of a stage share one seed, so that models are compared with the same random numbers. With ``own``, this
    sample has its own seed, so that its answers differ from those of other samples. ``states`` receives the states of
    the backbone's frozen layers.
    """
    sampler = make_sampler(backbone, config)
    states = states if states is not None and states.backbone is backbone else None
    folder = context.folder(stage) / "samples" / name
    rollouts: list[Rollout] = []
    total = len(prompts) * group
    with context.ui.bar(f"sampling {name}") as bar:
        bar.start(0, total)
        parts = max(1, round(total / max(CHUNK, REFILLS * config.slots)))
        chunk = -(-len(prompts) // parts)
        for start in range(0, len(prompts), chunk):
            path = folder / f"prompts-{start:06d}.jsonl"
            ids = [p.id for p in prompts[start : start + chunk] for _ in range(group)]
            saved = context.group.once(f"saved {name}", partial(load_rollouts, path, ids, states))
            if saved is not None:
                rollouts += saved
                bar.update(len(rollouts), total)
                continue
            if any(context.group.gather(f"{name} from prompt {start}", context.stop_requested)):
                raise Interrupted(
                    f"stopped after {len(rollouts)} of {total} answers; they are saved, the same command continues"
                )
            draw = partial(
                sampler.generate,
                adapter=adapter,
                seed=context.seed(f"{stage} {name}" if own else stage),
                group=group,
                states=states,
                progress=partial(_show_share, bar, len(rollouts), total, context.group.size),
            )
            part = drawn_by_share(
                context.group, f"{name} from prompt {start}", prompts[start : start + chunk], draw, answers=group
            )
            save_rollouts(path, part, states)
            rollouts += part
    return rollouts


def _show_share(bar: Bar, finished: int, total: int, ranks: int, drawn: int, _: int) -> None:
    """Show the answers of earlier chunks plus, for each rank, as many as this rank has drawn."""
    bar.update(finished + drawn * ranks, total)


def run_label(context: Context) -> tuple[Counts, list[str]]:
    """Have the answers compared by simulated annotators, people, AI judges, or judges and people together."""
    config, utility = context.config.label, context.gold()
    assert config is not None
    if config.by_ai:
        return run_ai_label(context)
    if config.source == "human":
        return _ask_people(context, config.human)
    if config.source == "votes":
        from trimtab.pipeline.votes import run_votes  # imports the database, which is needed only here

        return run_votes(context)
    assert utility is not None
    items = read_records(context.folder("sample") / "comparisons.jsonl", Comparison)
    simulation = config.simulation.model_copy(
        update={"seed": (config.simulation.seed + context.seed("label")) % (1 << 31)}
    )
    judgements = simulate(items, utility, simulation)
    write_records(context.folder("label") / "judgements.jsonl", judgements)
    context.ui.say(f"  {len(judgements)} judgements by {simulation.annotators} SIMULATED annotators")
    return {"items": len(items), "judgements": len(judgements), "source": "simulated"}, ["judgements.jsonl"]


def _ask_people(context: Context, config: HumanConfig) -> tuple[Counts, list[str]]:
    """Put the answers into the annotation app's queue, and return when there are enough judgements."""
    from trimtab.pipeline.people import AppPeople  # imports the database, which is needed only here

    items = read_records(context.folder("sample") / "comparisons.jsonl", Comparison)
    with AppPeople(context, config) as people:
        fitting = people.fit(items)
        people.ask(fitting, config.overlap)
        people.wait(fitting, config.enough)
        judgements, retired = people.judgements(fitting)
    write_records(context.folder("label") / "judgements.jsonl", judgements)
    sources = "+".join(sorted({j.source for j in judgements})) or "human"
    left_out = len(items) - len(fitting) + len(retired)
    counts = {"items": len(items), "judgements": len(judgements), "source": sources, "retired": left_out}
    return counts, ["judgements.jsonl"]


def compared_answers(context: Context) -> list[Comparison]:
    """The answers that the round's judgements are about: the sampled ones, or those that came with votes."""
    by_votes = context.config.label is not None and context.config.label.source == "votes"
    return read_records(context.folder("label" if by_votes else "sample") / "comparisons.jsonl", Comparison)


def run_preferences(context: Context) -> tuple[Counts, list[str]]:
    """Aggregate judgements, or read ready-made preferences."""
    folder = context.folder("preferences")
    objectives = () if context.config.reward is None else context.config.reward.objectives
    if context.config.label is None:
        source = context.config.data.preferences
        assert source is not None
        loaded = context.load(source, Preference)
        heldout_ids = context.set_aside()
        usable = [p for p in loaded.records if Prompt.of(p.prompt.messages).id not in heldout_ids]
        preferences = of_criteria(usable, objectives, source)
        if note := unnamed(Counter(p.criterion for p in usable), objectives) if objectives else None:
            context.ui.say(f"  {note}")
        write_records(folder / "preferences.jsonl", preferences)
        counts = {"preferences": len(preferences), "refused": len(loaded.refused)}
        if objectives:
            counts["other_criteria"] = len(usable) - len(preferences)
        return counts | {"set_aside": len(loaded.records) - len(usable)}, ["preferences.jsonl"]
    items = compared_answers(context)
    stored = read_records(context.folder("label") / "judgements.jsonl", Judgement)
    judgements = [j for j in stored if j.annotator not in context.config.label.without]
    if objectives:
        return _by_objective(context, items, judgements, objectives)
    result = aggregate(items, judgements, config=context.config.label.aggregate)
    if not result.preferences and not thumbs_of(context.run):
        reasons = ", ".join(f"{reason}: {n}" for reason, n in result.dropped.items())
        raise DataError(
            f"the judgements of {len(items)} items make no preference ({reasons}); there is nothing to learn from. A "
            "judge whose two orders contradict each other sees ties only: name a stronger one in label.judges, or set "
            "sample.answers to 2, where its probabilities still count"
        )
    write_records(folder / "preferences.jsonl", result.preferences)
    for note in result.notes:
        context.ui.say(f"  {note}")
    method, files = context.config.label.aggregate.method, ["preferences.jsonl", "agreement.json"]
    if method != "majority":
        habits = [h.model_dump(mode="json") for h in result.habits]
        write_json(folder / "annotators.json", {"method": method, "notes": result.notes, "annotators": habits})
        files.append("annotators.json")
    criterion = context.config.label.aggregate.criterion
    estimates = agreement_report(items, judgements, criterion=criterion, seed=context.seed("agreement"))
    agreement = {name: estimate.model_dump(exclude={"name"}) for name, estimate in estimates.items()}
    write_json(folder / "agreement.json", agreement)
    counts: Counts = {"preferences": len(result.preferences)}
    if context.config.label.without:
        counts["judgements dropped: of annotators in label.without"] = len(stored) - len(judgements)
    counts |= {f"items dropped: {reason}": n for reason, n in result.dropped.items()}
    for reason, n in result.dropped_judgements.items():
        counts[f"judgements dropped: {reason.removeprefix('item dropped: ')}"] = n
    return counts, files


def _by_objective(
    context: Context, items: Sequence[Comparison], judgements: Sequence[Judgement], objectives: Sequence[str]
) -> tuple[Counts, list[str]]:
    """Preferences by each criterion, in the order of the items; an item has one for each criterion it was judged by."""
    assert context.config.label is not None
    config, folder = context.config.label.aggregate, context.folder("preferences")
    position = {item.id: number for number, item in enumerate(items)}
    counts: Counts = {}
    preferences: list[Preference] = []
    agreement: dict[str, dict[str, object]] = {}
    for objective in objectives:
        result = aggregate(items, judgements, config=config.model_copy(update={"criterion": objective}))
        preferences += result.preferences
        counts[f"preferences of {objective}"] = len(result.preferences)
        counts |= {f"items dropped for {objective}: {reason}": n for reason, n in result.dropped.items()}
        for note in result.notes:
            context.ui.say(f"  {objective}: {note}")
        estimates = agreement_report(items, judgements, criterion=objective, seed=context.seed("agreement"))
        agreement[objective] = {name: estimate.model_dump(exclude={"name"}) for name, estimate in estimates.items()}
    preferences.sort(key=lambda p: position[p.id])
    renamed = [p.model_copy(update={"id": f"{p.id}/{p.criterion}"}) for p in preferences]
    write_records(folder / "preferences.jsonl", renamed)
    write_json(folder / "agreement.json", agreement[objectives[0]])
    write_json(folder / "agreement-by-objective.json", agreement)
    judged = Counter(j.criterion for j in judgements if j.ranks is not None)
    if note := unnamed(judged, objectives):
        context.ui.say(f"  {note}")
    context.ui.say(f"  the report's agreement of annotators is that about {objectives[0]!r}, the first objective")
    counts = {"preferences": len(renamed)} | counts
    counts["judgements of other criteria"] = sum(n for name, n in judged.items() if name not in objectives)
    return counts, ["preferences.jsonl", "agreement.json", "agreement-by-objective.json"]
