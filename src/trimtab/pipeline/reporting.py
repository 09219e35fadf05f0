"""The before/after page: collects the results of all stages into one :class:`ReportData`."""

import math
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from statistics import stdev
from typing import Any

from trimtab import __version__
from trimtab.errors import DataError
from trimtab.evals import (
    Alarm,
    Answer,
    Capability,
    CapabilityReport,
    Evaluation,
    Example,
    Examples,
    GaoFit,
    Measure,
    ProbeColumn,
    Reading,
    ReportData,
    Series,
    Source,
    Stage,
    Turn,
    WinRateRow,
    WinRow,
    alarms,
    capability_report,
    choose_examples,
    find_turn,
    fit_form,
    reward_against_kl,
    series_from_metrics,
    write_report,
)
from trimtab.evals.report_data import Section
from trimtab.evals.turns import FEWEST_FITTED
from trimtab.feedback import Estimate, bias_lines, report_lines
from trimtab.metrics import AGREEMENT, TRAINING
from trimtab.pipeline.ai_labels import compare_with_people, people_so_far, read_routing
from trimtab.pipeline.annotator_votes import annotator_lines
from trimtab.pipeline.blind import BlindResults, blind_results
from trimtab.pipeline.capability import FILE
from trimtab.pipeline.cohorts import run_population
from trimtab.pipeline.config import RunConfig
from trimtab.pipeline.constitutional import RevisionFacts
from trimtab.pipeline.context import Context, Counts, now
from trimtab.pipeline.evaluation_result import read_evaluation
from trimtab.pipeline.judge_result import read_judge_result
from trimtab.pipeline.monitoring import read_alarms
from trimtab.pipeline.reward_result import read_reward_result
from trimtab.pipeline.round_rows import round_rows
from trimtab.pipeline.small_results import (
    read_agreement,
    read_balance,
    read_capability,
    read_capability_after,
    read_sft,
)
from trimtab.pipeline.suites import suites_of
from trimtab.pipeline.vote_files import measured_lines, read_measured
from trimtab.records import Comparison, Judgement, Rollout, read_records
from trimtab.storage import read_metrics, read_record
from trimtab.trainers import HELDOUT, METHODS, OnlineConfig

PRETRAINED = "the pretrained model"
"""Name of the model that training started from, for use inside a sentence."""

CAPTIONS = {
    "base": "before any training here",
    "sft": "after imitating demonstrations",
    "start": "what this round started from",
    "policy": "after learning from preferences",
    "best_of": "the sampled answer with the highest reward",
}
"""Description of each model's training for readers who do not know the names of methods."""

NOTICE = "The preferences in this run come from simulated annotators, and “gold” is the simulated utility they follow."
GOLD = "“Gold” is a simulated utility."
NO_PERSON = "No person judged these answers."

ORIGINS = {
    "ai": "AI judges under a written constitution",
    "human": "people",
    "simulated": "simulated annotators",
    "imported": "an imported file, which does not say who judged",
}
"""Who gave a judgement, by its source."""

GOLD_NOTE = "“Gold” is a simulated utility, used only for evaluation."


def run_report(context: Context) -> tuple[Counts, list[str]]:
    """Write ``report.html`` and ``report.json``; those of the newest round are then copied to the run's folder."""
    data = collect(context)
    write_report(data, context.folder("report"))
    context.ui.say(f"  report: {context.run.first.path / 'report.html'}")
    return {"examples": len(data.examples.shown) if data.examples else 0}, ["report.html", "report.json"]


def collect(context: Context) -> ReportData:
    """Everything the page shows, from the files of the stages."""
    run = context.config
    result = read_evaluation(context.folder("evaluate"))
    answers = {
        name: read_records(context.folder("evaluate") / f"answers-{name}.jsonl", Rollout) for name in result.models
    }
    align = read_metrics(context.folder("align") / "metrics.jsonl") if run.align else []
    reward = read_reward_result(context.folder("reward")) if run.reward else None
    blind = blind_results(context.run)
    result = result.model_copy(update={"win_rates": (*blind.rows, *result.win_rates)})
    number = context.run.number
    names, judges, spoken = model_names(run, number), judges_of(run), spoken_names(run, number)
    models = result.models
    first, last = models[0], models[-1]
    previous = models[-2] if len(models) > 1 else first  # the KL is measured from this model
    ceiling, agreement = _agreement(context) if run.label else (None, ())
    sources = _label_sources(context)
    simulated = "simulated" in sources or run.gold is not None
    cost, losses = _capability(context)
    suites, no_suites = suites_of(context.run.first)
    watched = alarms(result, names=spoken, judges=judges)
    losses += training_alarms(context)
    return ReportData(
        title=f"{run.name}: {names[first]} and {names[last]} side by side",
        about=run.about or "",
        run=run.name,
        recipe=str(context.recipe),
        created_at=now(),
        machine=machine(),
        versions=versions(),
        seeds={"run": run.seed},
        simulated=simulated,
        notice=_notice(run, sources, blind, simulated=simulated),
        seconds=sum(s.seconds for s in _stages(context)),
        peak_memory_gb=context.run.peak_memory(),
        first=names[first],
        before=names[previous],
        after=names[last],
        spoken={names[name]: text for name, text in spoken.items() if name in models},
        captions={names[name]: text for name, text in CAPTIONS.items() if name in models},
        stages=_stages(context),
        rounds=round_rows(context.run),
        win_rates=tuple(_win_row(row, names, judges) for row in result.win_rates),
        readings=tuple(_with_page_names(reading, names) for reading in blind.readings),
        suites=suites,
        population=run_population(context.run, names),
        kl=None if result.kl is None else result.kl.estimate("KL per answer"),
        series=_series(context, align),
        against_kl=_against_kl(context, align, answers),
        **_turning_points(context, align),
        model_errors=reward.errors if reward else None,
        reward_model=reward.evaluation if reward else None,
        objectives={name: objective.evaluation for name, objective in reward.objectives.items()} if reward else {},
        annotators=tuple(annotator_lines(reward.annotators)) if reward and reward.annotators else (),
        ceiling=ceiling,
        agreement=agreement,
        balance=_balance(context),
        labels=_label_lines(context),
        probes=tuple(ProbeColumn(model=names[n], values=result.probes[n]) for n in models),
        gain=result.gain,
        capability=cost,
        alarms=losses or None if watched is None else watched + losses,
        examples=_examples(context, answers, result, names[first], names[last]) if first != last else None,
        sources=_sources(context),
        missing=_missing(run, blind, has_cost=cost is not None) | ({"suites": no_suites} if no_suites else {}),
    )


def training_alarms(context: Context) -> tuple[Alarm, ...]:
    """Alarms raised while the policy trained."""
    if not isinstance(context.config.align, OnlineConfig):
        return ()
    return _collapse_alarms(context) + tuple(
        Alarm(
            name=f"{alarm.title} while training ({alarm.level}, step {alarm.step})",
            message=f"{alarm.message}. {alarm.advice} The answers behind it: trimtab watch {context.run.path}",
        )
        for alarm in read_alarms(context)
    )


def _collapse_alarms(context: Context) -> tuple[Alarm, ...]:
    """A collapse after which the run continued with earlier weights (``align.guard.on_fall: keep``)."""
    status = context.run.status("align")
    counts = {} if status is None else status.counts or {}
    if "fell_apart_at_step" not in counts:
        return ()
    return (
        Alarm(
            name=f"Alignment fell apart at step {counts['fell_apart_at_step']}",
            message="a limit of align.guard was passed; as align.guard.on_fall says, the policy has the last good "
            f"weights, those after {counts['steps']} steps. Lower policy.lr, or raise align.kl.coefficient",
        ),
    )


def _missing(run: RunConfig, blind: BlindResults, *, has_cost: bool) -> dict[str, str]:
    """Reasons why parts of the page are empty, by name of the part."""
    missing: dict[str, str] = {}
    if blind.stale:
        missing["readings"] = (
            f"Answers were made again since blind readers judged them ({', '.join(blind.stale)}); their judgements are "
            "stored in the run’s folder blind/ and not shown."
        )
    if run.gold is None:
        judges = ([_proxy_text(run)] if run.reward or run.rewards else []) + (["blind readers"] if blind.rows else [])
        alternatives = f" but {' and '.join(judges)}" if judges else ""
        missing["gold"] = f"This run has no gold utility, so no judge{alternatives} compared the answers."
    if run.evaluate is not None and not run.evaluate.pretrained:
        missing["base"] = "The model was not pretrained (evaluate.pretrained is false), so nothing is compared with it."
    if run.align is None:
        missing["reward_against_kl"] = "This run did not align a policy."
    elif not isinstance(run.align, OnlineConfig):
        missing["reward_against_kl"] = f"{run.align.method.upper()} learns from judged answers; no reward is climbed."
    if run.label is None:
        missing["agreement"] = f"{_origin(run)} So there are no judgements to compare."
    if not has_cost:
        missing["capability"] = (
            "This run trained no language model, so there is no cost to measure."
            if run.capability
            else "The capability check is off in this run (capability: null)."
        )
    return missing


def _notice(run: RunConfig, sources: set[str], blind: BlindResults, *, simulated: bool) -> str:
    """The notice: who gave the preferences, who judged the held-out answers, and what is simulated."""
    people = {r.reader for r in blind.readings if r.kind == "human"}
    no_person = "" if people or {"human", "imported"} & sources else NO_PERSON
    if run.label is None:
        notice = f"{_origin(run)} {f'{GOLD} {no_person}' if simulated else ''}"
    elif run.label.source == "simulated":
        notice = f"{NOTICE} {no_person}"
    else:
        origins = " and ".join(text for source, text in ORIGINS.items() if source in sources)
        notice = f"The preferences in this run come from {origins}. {no_person} {GOLD_NOTE if run.gold else ''}"
    if people:
        readers = "one person" if len(people) == 1 else f"{len(people)} people"
        notice += f" The held-out answers were read blind by {readers}."
    return " ".join(notice.split())


def _sources(context: Context) -> dict[Section, Source]:
    """For each part of the page, the file its numbers come from and the command that makes it."""
    recipe, prefix = context.recipe, context.run.place
    run, evaluate = f"trimtab run {recipe}", f"trimtab eval {recipe}"
    sources: dict[Section, Source] = {
        "win_rates": Source(file="stages/evaluate/evaluation.json", command=evaluate),
        "readings": Source(file="blind/*.judgements.jsonl", command=f"{evaluate} --read FILE"),
        "capability": Source(file=f"stages/*/{FILE}", command=run),
        "balance": Source(file="stages/balance/balance.json", command=run),
        "reward_against_kl": Source(file="stages/align/metrics.jsonl", command=f"trimtab align {recipe}"),
        "curves": Source(file="stages/*/metrics.jsonl", command=run),
        "reward_model": Source(file="stages/reward/reward.json", command=f"trimtab reward {recipe}"),
        "agreement": Source(file="stages/preferences/agreement.json", command=run),
        "probes": Source(file="stages/evaluate/evaluation.json", command=evaluate),
        "alarms": Source(file="stages/evaluate/evaluation.json", command=evaluate),
        "examples": Source(file="stages/evaluate/answers-*.jsonl", command=evaluate),
    }
    return {part: source.model_copy(update={"file": f"{prefix}{source.file}"}) for part, source in sources.items()}


def _label_sources(context: Context) -> set[str]:
    """Sources as stored in the judgements, so that simulated ones are named whatever the recipe says."""
    if context.config.label is None:
        return set()
    return {j.source for j in read_records(context.folder("label") / "judgements.jsonl", Judgement)}


def _capability(context: Context) -> tuple[CapabilityReport | None, tuple[Alarm, ...]]:
    """The capability checks before and after the training stages."""
    run, names = context.config, model_names(context.config, context.run.number)
    models: dict[str, Capability] = {}
    trained = [("sft", "sft", context.folder("sft"))] if run.sft is not None else []
    if run.align is not None:
        if context.run.number > 1 and not trained:
            trained.append(("", "", context.run.first.stage("align")))
        trained.append(("start", "policy", context.folder("align")))
    for before, after, folder in trained if run.capability is not None else ():
        measured = read_capability(folder)
        models.setdefault(names["base"], measured.before)
        if context.run.number > 1 and before == "start":
            models[names["start"]] = measured.before
        if after and (context.run.number == 1 or after == "policy"):
            models[names[after]] = read_capability_after(folder)
    return capability_report(models) if models else (None, ())


def _balance(context: Context) -> tuple[Measure, ...]:
    return () if context.config.balance is None else read_balance(context.folder("balance")).measures


def _label_lines(context: Context) -> tuple[str, ...]:
    """The results of critique and revision, of the judges and of the router, in words."""
    lines: list[str] = []
    if context.config.revise is not None:
        revised = read_record(context.folder("revise") / "revise.json", RevisionFacts)
        outcomes = ", ".join(f"{name} {count}" for name, count in revised.counts.items())
        lines.append(f"critique and revision: {outcomes}")
        lines += [f"judge of revisions: {line}" for line in bias_lines(revised.judge)]
    if context.config.label is not None and context.config.label.source == "votes":
        lines += measured_lines(read_measured(context.folder("label")).pairs)
    if context.config.label is not None and context.config.label.by_ai:
        hybrid = context.config.label.source == "hybrid"
        if hybrid:
            people = read_records(context.folder("label") / "people.jsonl", Judgement)
        else:
            people = people_so_far(context, read_records(context.folder("sample") / "comparisons.jsonl", Comparison))
        compared = compare_with_people(context, people)
        for name, entry in read_judge_result(context.folder("label") / "judge").judges.items():
            lines += [f"judge {name}: {line}" for line in report_lines(entry.run, compared.get(name))]
        if hybrid:
            routing = read_routing(context.folder("label"))
            routes = ", ".join(f"{name} {count}" for name, count in routing.routes.items())
            lines.append(
                f"routes: {routes}; {routing.labels_saved} labels by people saved, {routing.hours_saved:.1f} h"
            )
    return tuple(lines)


def _proxy_text(run: RunConfig) -> str:
    """Description of the proxy: the rewards by the recipe's names, or the reward model."""
    if not run.rewards:
        return "the reward model"
    return f"the reward{'s' if len(run.rewards) > 1 else ''} {' and '.join(f'“{name}”' for name in run.rewards)}"


def judges_of(run: RunConfig) -> dict[str, str]:
    """The page's name for each judge."""
    trained = ", trained against" if isinstance(run.align, OnlineConfig) else ""
    return {"gold": "the gold utility (simulated)", "proxy": f"{_proxy_text(run)} (proxy{trained})"}


def _origin(run: RunConfig) -> str:
    """Origin of the preferences in a run that labels nothing."""
    for source, kind in ((run.data.preferences, "preferences"), (run.data.ratings, "ratings")):
        if source:
            return f"The {kind} were imported from a file; see the provenance below."
    return "This run has no preferences."


def model_names(run: RunConfig, number: int = 1) -> dict[str, str]:
    """The page's name for each model; the aligned model is named by its method, or from round 2 on by its round."""
    label = "" if run.align is None else METHODS[run.align.method].label
    if number > 1:
        label = f"Round {number}"
    best = "" if run.evaluate is None or run.evaluate.best_of is None else f"Best of {run.evaluate.best_of}"
    first = "Pretrained" if run.evaluate is None or run.evaluate.pretrained else "Start"
    return {"base": first, "sft": "SFT", "start": f"Round {number - 1}", "policy": label, "best_of": best}


def spoken_names(run: RunConfig, number: int = 1) -> dict[str, str]:
    """Each model's name inside a sentence."""
    pretrained = run.evaluate is None or run.evaluate.pretrained
    names = model_names(run, number) | {"base": PRETRAINED if pretrained else "the start model"}
    return names if number == 1 else names | {"start": f"round {number - 1}", "policy": f"round {number}"}


def machine() -> str:
    """Processor, cores and memory, in words."""
    cores = os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 if hasattr(os, "sysconf") else math.nan
    return f"{cpu_name()}, {cores} cores, {memory:.0f} GB, {_accelerator()}"


def cpu_name() -> str:
    """The processor's name if the system reports it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _accelerator() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no accelerator"


def versions() -> dict[str, str]:
    """Versions of trimtab, Python and the main packages."""
    installed = {"trimtab": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "peft"):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def _stages(context: Context) -> tuple[Stage, ...]:
    rows = []
    for name in context.fingerprints:
        status = context.run.status(name)
        if name == "report" or status is None:
            continue
        counts = {k: v for k, v in (status.counts or {}).items() if isinstance(v, int)}
        state = "cached" if name in context.cached else "ran"
        rows.append(
            Stage(name=name, status=state, seconds=status.seconds, fingerprint=status.fingerprint, counts=counts)
        )
    return tuple(rows)


def _win_row(row: WinRow, names: Mapping[str, str], judges: Mapping[str, str]) -> WinRateRow:
    """A row of the evaluation with the page's names."""
    return WinRateRow(
        model=names[row.model],
        against=names[row.against],
        metric=judges.get(row.judge, row.judge),
        equal_length=Estimate(n=row.n, **row.equal_length.model_dump()) if row.equal_length else None,
        **row.model_dump(include={"rate", "low", "high", "n", "wins", "ties", "losses"}),
    )


def _with_page_names(reading: Reading, names: Mapping[str, str]) -> Reading:
    """A reading with the page's names for the models."""
    sensible = {names[model]: counts for model, counts in reading.sensible.items()}
    update = {"model": names[reading.model], "against": names[reading.against], "sensible": sensible}
    return reading.model_copy(update=update)


def _series(context: Context, align: list[dict[str, Any]]) -> tuple[Series, ...]:
    online = isinstance(context.config.align, OnlineConfig)
    series: list[Series | None] = []
    if context.config.sft:
        rows, file = read_metrics(context.folder("sft") / "metrics.jsonl"), "stages/sft/metrics.jsonl"
        series.append(
            series_from_metrics(rows, "loss", panel="sft_loss", name="training", unit="nats per token", file=file)
        )
        facts = read_sft(context.folder("sft"))
        if rows and facts.heldout_nll_before is not None and facts.heldout_nll_after is not None:
            series.append(
                Series(
                    panel="sft_loss",
                    name="held out",
                    x=(0, rows[-1]["step"]),
                    y=(facts.heldout_nll_before, facts.heldout_nll_after),
                    unit="nats per token",
                    file="stages/sft/sft.json",
                )
            )
    if context.config.reward:
        rows = read_metrics(context.folder("reward") / "metrics.jsonl")
        file = f"{context.run.place}stages/reward/metrics.jsonl"
        series.append(series_from_metrics(rows, "accuracy", panel="reward_accuracy", unit="share", file=file))
    panels = {"loss": "preference loss", "accuracy": "implied accuracy", "reward": "proxy"}
    panels |= {"chosen": "log(π/ref) of better answers", "rejected": "log(π/ref) of worse answers"}
    for key in (
        *panels,
        "gold",
        f"reward/{HELDOUT}",
        "reward/spread",
        "kl",
        "length",
        "entropy",
        "clip_fraction",
        "value_loss",
        "explained_variance",
    ):
        series.append(
            series_from_metrics(
                align,
                key,
                panel=panels.get(key, key),
                unit=TRAINING[key].unit,
                x_unit="rollout batch" if online else "optimiser step",
                file=f"{context.run.place}stages/align/metrics.jsonl",
            )
        )
    return tuple(s for s in series if s is not None)


SCORES = {"proxy": "reward", "held-out reward model": f"reward/{HELDOUT}", "gold (simulated)": "gold"}
"""The scores that are shown against √KL, and their keys in the metrics."""


def _against_kl(context: Context, align: list[dict[str, Any]], answers: Mapping[str, list[Rollout]]) -> Any:
    start = answers.get("start") or answers.get("sft") or answers["base"]
    evaluated = {"proxy": "proxy", "gold (simulated)": "gold"}
    values = {label: [r.rewards[key] for r in start if key in r.rewards] for label, key in evaluated.items()}
    drawn = context.folder("align") / "samples" / "step-000000.jsonl"
    if any(SCORES["held-out reward model"] in row for row in align) and drawn.exists():
        first = read_records(drawn, Rollout)
        values["held-out reward model"] = [r.rewards[HELDOUT] for r in first if HELDOUT in r.rewards]
    spreads = {label: stdev(numbers) or 1.0 for label, numbers in values.items() if len(numbers) > 1}
    points = reward_against_kl(
        align, kl="kl", scores={label: SCORES[label] for label in SCORES if label in spreads}, spreads=spreads, x="step"
    )
    config = context.config.align
    moving_reference = isinstance(config, OnlineConfig) and config.reference_update is not None
    return points.model_copy(update={"moving": moving_reference}) if points is not None else None


def _turning_points(context: Context, align: list[dict[str, Any]]) -> dict[str, Any]:
    """Where each score turned, and the forms fitted to it; empty for a method that maximises no reward."""
    turns: list[Turn] = []
    fits: list[GaoFit] = []
    if not isinstance(context.config.align, OnlineConfig):
        return {"turns": (), "fits": ()}
    for label, key in SCORES.items():
        rows = [row for row in align if all(isinstance(row.get(k), int | float) for k in ("step", "kl", key))]
        if not rows:
            continue
        kl, scores = [row["kl"] for row in rows], [row[key] for row in rows]
        turns.append(find_turn(label, [row["step"] for row in rows], kl, scores, seed=context.seed("turn")))
        if sum(k > 0 for k in kl) >= FEWEST_FITTED:
            try:
                fits.append(fit_form(label, kl, [score - scores[0] for score in scores], "rl"))
            except DataError as error:
                context.ui.say(f"  no form is fitted: {error}")
    return {"turns": tuple(turns), "fits": tuple(fits)}


def _agreement(context: Context) -> tuple[Estimate | None, tuple[Estimate, ...]]:
    estimates = {
        name: estimate.model_copy(update={"name": AGREEMENT[name].title if name in AGREEMENT else name})
        for name, estimate in read_agreement(context.folder("preferences")).items()
    }
    ceiling = estimates.get("leave_one_out")
    return (ceiling if ceiling is not None and ceiling.value is not None else None), tuple(estimates.values())


def _examples(
    context: Context, answers: Mapping[str, list[Rollout]], result: Evaluation, before: str, after: str
) -> Examples | None:
    names = model_names(context.config, context.run.number)
    kl = () if result.kl is None else result.kl.per_answer
    examples = []
    for index, start in enumerate(next(iter(answers.values()))):
        example_answers = tuple(
            Answer(
                model=names[name],
                text=rollouts[index].text,
                proxy=rollouts[index].rewards.get("proxy"),
                gold=rollouts[index].rewards.get("gold"),
                kl=kl[index] if name == "policy" and kl else None,
                finish_reason=rollouts[index].finish_reason,
                tokens=len(rollouts[index].tokens),
            )
            for name, rollouts in answers.items()
        )
        examples.append(Example(id=start.prompt.id, prompt=start.prompt.text, answers=example_answers))
    count = context.config.evaluate.examples if context.config.evaluate else 24
    per_side = count // 6
    return choose_examples(
        examples,
        before=before,
        after=after,
        seed=context.seed("examples"),
        draw=max(count - 2 * per_side - 1, 1),
        best=per_side,
        worst=per_side,
    )
