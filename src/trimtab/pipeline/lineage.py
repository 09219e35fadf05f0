"""Traces a judgement to the weights and figures it affects, and back.

The path is: judgement → preference → reward model (in which optimiser steps) → policy (all its steps maximise that
reward model; offline methods learn from the preference itself) → figures of the policy. A later round's reward model
learns from the preferences of all rounds, and its policy starts from the earlier ones, so the path continues through
all later rounds. Only finished stages whose inputs have not changed since count.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from trimtab.errors import DataError
from trimtab.feedback import Estimate
from trimtab.pipeline.config import RunConfig, load_recipe
from trimtab.pipeline.evaluation_result import FILE as EVALUATION_FILE
from trimtab.pipeline.evaluation_result import read_evaluation
from trimtab.pipeline.learned import LEARNED, Learned
from trimtab.pipeline.reward_models import weights_file
from trimtab.pipeline.reward_result import FILE as REWARD_FILE
from trimtab.pipeline.reward_result import read_reward_result
from trimtab.pipeline.traced import Trace, TracedFigure, TracedJudgement, TracedModel, TracedPair
from trimtab.pipeline.vote_files import LEARNED_THUMBS, REFUSALS, WrongRefusal, thumbs_of
from trimtab.records import Judgement, Preference, read_records
from trimtab.storage import RunFolder, read_metrics, read_record
from trimtab.trainers import HELDOUT, OfflineConfig

FIGURES = ("win_rate", "kl", "reward_accuracy")
"""Figures that can be traced back."""
THUMB_PARTS = {
    "train": "learned from by the policy of",
    "held_out": "held out and only measured on in",
    "left_out": "not learned from (too long, or the alignment is not finished) in",
}
SHORTEST = 8
"""Minimum number of characters of a checkpoint's hash."""


def trace(run: RunFolder, name: str, *, round: int | None = None) -> Trace:
    """Trace where something in a run comes from, and what was made from it.

    Args:
        run: the run's folder.
        name: id of a judgement or vote, id of a pair, beginning of the SHA-256 of a policy's or reward model's weights,
            or a figure of :data:`FIGURES`.
        round: round of the figure; None: the newest.

    Raises:
        DataError: nothing in the run has this name.
    """
    rounds = [_Round(r) for r in run.rounds()[: run.newest().number]]
    if round is not None and not 1 <= round <= len(rounds):
        raise DataError(f"--round {round}: this run has rounds 1 to {len(rounds)} with a finished policy")
    if name in FIGURES:
        chosen = rounds[(round or len(rounds)) - 1]
        return _sources_of_figure(rounds, chosen, name, kind="figure", figures=chosen.figures(name))
    for r in rounds:
        if name in r.judgements:
            return _from_judgement(rounds, r, name)
    for r in rounds:
        if name in r.preferences:
            return _from_pair(rounds, r, r.preferences[name])
    for r in rounds:
        for thumb in thumbs_of(r.run):
            if thumb.id == name:
                judgement = TracedJudgement(id=name, round=r.number, annotator=thumb.annotator, source=thumb.source)
                file = r.run.stage("align") / LEARNED_THUMBS
                known = file.is_file() and r.done("align", "label")
                parts = read_record(file, dict[str, list[str]]) if known else {}
                part = next((part for part, names in parts.items() if name in names), "left_out")
                return Trace(
                    kind="judgement",
                    judgements=(judgement,),
                    policies=_policies(rounds[r.number - 1 :]) if part == "train" else (),
                    notes=(f"a thumb, {THUMB_PARTS[part]} round {r.number}",),
                )
    for r in rounds:
        for refusal in r.refusals:
            if refusal.vote == name:
                note = "a refusal that was voted wrong: it waits for a person and is never trained on"
                judgement = TracedJudgement(id=name, round=r.number, annotator=refusal.annotator)
                return Trace(kind="judgement", judgements=(judgement,), notes=(note,))
    for r in rounds if len(name) >= SHORTEST else ():
        for stage in ("align", "reward"):
            if (r.weights(stage) or "").startswith(name):
                figure = "reward_accuracy" if stage == "reward" else "win_rate"
                figures = r.figures("reward_accuracy") if stage == "reward" else r.policy_figures()
                return _sources_of_figure(rounds, r, figure, kind="checkpoint", figures=figures)
    later = ", ".join(str(r.number) for r in run.rounds()[len(rounds) :])
    unsearched = f" Not searched: round {later}, which is not finished or out of date." if later else ""
    total = sum(len(r.judgements) for r in rounds)
    raise DataError(
        f"{name!r}: not a judgement, pair or checkpoint of {run.path} ({total} judgements in {len(rounds)} rounds). "
        "Ids of judgements are in stages/label/judgements.jsonl, those of pairs in "
        "stages/preferences/preferences.jsonl (later rounds: rounds/N/stages/...); a "
        f"checkpoint is named by {SHORTEST} or more characters of its SHA-256 in stages/align/status.json; figures are "
        f"{', '.join(FIGURES)}. Votes that no round has collected yet are not here.{unsearched}"
    )


@dataclass(frozen=True)
class _Round:
    """The files of one round of a run, each read once."""

    run: RunFolder

    @property
    def number(self) -> int:
        return self.run.number

    def done(self, stage: str, *made_from: str) -> bool:
        return self.run.is_finished(stage) and all(self.run.made_from(stage, earlier) for earlier in made_from)

    @cached_property
    def config(self) -> RunConfig:
        return load_recipe(self.run.path / "config.yaml")

    @cached_property
    def judgements(self) -> dict[str, Judgement]:
        file = self.run.stage("label") / "judgements.jsonl"
        return {j.id: j for j in read_records(file, Judgement)} if self.done("label") else {}

    @cached_property
    def refusals(self) -> list[WrongRefusal]:
        file = self.run.stage("label") / REFUSALS
        return read_records(file, WrongRefusal) if file.is_file() and self.done("label") else []

    @cached_property
    def preferences(self) -> dict[str, Preference]:
        file = self.run.stage("preferences") / "preferences.jsonl"
        return {p.id: p for p in read_records(file, Preference)} if self.done("preferences", "label") else {}

    def learned(self, stage: str) -> list[Learned] | None:
        """How the stage used each preference; None: the stage is unfinished, or an older version did not record it."""
        file = self.run.stage(stage) / LEARNED
        return read_records(file, Learned) if file.is_file() and self.done(stage, "preferences") else None

    def weights(self, stage: str, model: str = "") -> str | None:
        status = self.run.status(stage) if self.done(stage) else None
        file = "weights.safetensors" if model in ("", stage) else weights_file(model)
        return None if status is None else (status.outputs or {}).get(file)

    def steps(self, stage: str, model: str = "") -> int:
        rows = read_metrics(self.run.stage(stage) / ("" if model == stage else model) / "metrics.jsonl")
        return int(rows[-1]["step"]) if rows else 0

    def model(self, stage: str, learned: Learned) -> TracedModel:
        """The model of the stage that used a preference in this way."""
        return TracedModel(
            round=self.number,
            model=learned.model,
            part=learned.part,
            steps=learned.steps,
            of=self.steps(stage, learned.model),
            weights=self.weights(stage, learned.model),
        )

    def policy_steps(self) -> int:
        """Number of steps behind the policy's weights, which need not be those of the last step."""
        status = self.run.status("align")
        counts = {} if status is None else status.counts or {}
        return int(counts.get("steps", self.steps("align")))

    def figures(self, name: str) -> Iterator[TracedFigure]:
        """A figure's values."""
        if name == "reward_accuracy":
            folder = self.run.stage("reward")
            file, result = folder / REWARD_FILE, read_reward_result(folder).evaluation if self.done("reward") else None
            if result is not None:
                yield self._figure(name, "held-out pairs", result.accuracy, file)
            return
        if not self.done("evaluate", "align"):
            return
        folder = self.run.stage("evaluate")
        result, file = read_evaluation(folder), folder / EVALUATION_FILE
        if name == "kl" and result.kl is not None:
            yield self._figure(name, "nats per answer", result.kl.estimate(), file)
        for row in result.win_rates if name == "win_rate" else ():
            if row.model == "policy":
                yield self._figure(name, f"policy over {row.against}, judged by {row.judge}", row.estimate(), file)

    def _figure(self, name: str, subject: str, estimate: Estimate, file: Path) -> TracedFigure:
        numbers = estimate.model_dump(include={"value", "low", "high", "n"})
        return TracedFigure(figure=name, round=self.number, of=subject, file=str(file), **numbers)

    def policy_figures(self) -> Iterator[TracedFigure]:
        """The figures of the round's policy."""
        yield from self.figures("win_rate")
        yield from self.figures("kl")


def _from_judgement(rounds: list[_Round], r: _Round, name: str) -> Trace:
    judgement = r.judgements[name]
    judgements = (_described(judgement, r),)
    preference = next((p for p in r.preferences.values() if name in p.judgements), None)
    if preference is not None:
        return _effects_of_pair(rounds, r, preference, kind="judgement", judgements=judgements)
    label = r.config.label
    if label is not None and judgement.annotator in label.without:
        note = f"left out: label.without names {judgement.annotator!r}"
    elif judgement.ranks is None:
        note = f"no ranking was given ({judgement.verdict})"
    elif not r.done("preferences", "label"):
        note = "the preferences of its round are not finished"
    else:
        note = "no preference was made from it: its item's answers all tie, or another judgement settled it"
    return Trace(kind="judgement", judgements=judgements, notes=(note,))


def _described(judgement: Judgement, r: _Round) -> TracedJudgement:
    shared = {"id", "item", "annotator", "source", "criterion", "verdict", "created_at"}
    return TracedJudgement(round=r.number, **judgement.model_dump(include=shared))


def _pair(preference: Preference, r: _Round) -> TracedPair:
    shared = {"id", "ranks", "probability", "weight", "judgements"}
    return TracedPair(round=r.number, **preference.model_dump(include=shared))


def _from_pair(rounds: list[_Round], r: _Round, preference: Preference) -> Trace:
    judgements = tuple(_described(r.judgements[j], r) for j in preference.judgements if j in r.judgements)
    notes = () if preference.judgements else ("it came from a file of preferences, which names no judgements",)
    return _effects_of_pair(rounds, r, preference, kind="pair", judgements=judgements, notes=notes)


def _effects_of_pair(
    rounds: list[_Round],
    r: _Round,
    preference: Preference,
    *,
    kind: Literal["judgement", "pair"],
    judgements: tuple[TracedJudgement, ...],
    notes: Sequence[str] = (),
) -> Trace:
    """The trace of a pair: the reward models, policies and figures that it affects."""
    notes = list(notes)
    models: list[TracedModel] = []
    policies: list[TracedModel] = []
    figures: list[TracedFigure] = []
    for later in rounds[r.number - 1 :]:
        for stage, entries in (("reward", models), ("align", policies)):
            learned = later.learned(stage)
            matching = [x for x in learned or () if (x.preference, x.round) == (preference.id, r.number)]
            entries += [later.model(stage, x) for x in matching]
            if stage == "reward" and learned is None and later.done("reward"):
                notes.append(f"round {later.number}: the reward model's steps were not recorded, or it is out of date")
            if stage == "reward" and learned is not None and not matching:
                notes.append(f"round {later.number}: the reward model could not use this pair (ties, or too long)")
        figures += later.figures("reward_accuracy")
        offline = isinstance(later.config.align, OfflineConfig)
        if offline and later.number == r.number and later.done("align") and later.learned("align") is None:
            notes.append(f"round {later.number}: the policy's steps were not recorded, or it is out of date")
        by_reward = any(m.part == "train" and m.round == later.number and m.model != HELDOUT for m in models)
        part, steps, total_steps = "", (), 0
        if later.done("align") and not offline and by_reward and later.run.made_from("align", "reward"):
            part, total_steps = "through the reward model", later.policy_steps()
            steps = (1, total_steps)
        elif later.done("align") and any(p.learned and p.round < later.number for p in policies):
            part = "through the policy it starts from"
        if part:
            weights = later.weights("align")
            policies.append(TracedModel(round=later.number, part=part, steps=steps, of=total_steps, weights=weights))
        if any(p.learned and p.round == later.number for p in policies):
            figures += later.policy_figures()
    return Trace(
        kind=kind,
        judgements=judgements,
        pair=_pair(preference, r),
        reward_models=tuple(models),
        policies=tuple(policies),
        figures=tuple(figures),
        notes=tuple(notes),
    )


def _policies(rounds: Sequence[_Round]) -> tuple[TracedModel, ...]:
    """The finished policies of some rounds."""
    return tuple(TracedModel(round=r.number, weights=r.weights("align")) for r in rounds if r.done("align"))


def _sources_of_figure(
    rounds: list[_Round],
    r: _Round,
    figure: str,
    *,
    kind: Literal["checkpoint", "figure"],
    figures: Iterable[TracedFigure],
) -> Trace:
    """The trace of a figure: the weights that it is about, and the number of judgements behind them, by round."""
    judgements: list[TracedJudgement] = []
    notes: list[str] = []
    for earlier in rounds[: r.number]:
        used = {j for p in earlier.preferences.values() for j in p.judgements}
        judgements += [_described(j, earlier) for name, j in earlier.judgements.items() if name in used]
        if not earlier.judgements:
            notes.append(f"round {earlier.number} has no judgements: its preferences came from a file")
    reward = TracedModel(round=r.number, weights=r.weights("reward"))
    return Trace(
        kind=kind,
        figures=tuple(figures),
        judgements=tuple(judgements),
        pairs={e.number: len(e.preferences) for e in rounds[: r.number]},
        reward_models=(reward,) if r.done("reward") else (),
        policies=() if figure == "reward_accuracy" else _policies(rounds[: r.number]),
        notes=tuple(notes),
    )


def lines(traced: Trace) -> list[str]:
    """The result of :func:`trace` as lines of text, from the judgements to the figures."""
    out = list(_judgement_lines(traced))
    if pair := traced.pair:
        label = (
            f"ranks {list(pair.ranks)}" if pair.probability is None else f"P(first is better) {pair.probability:.2f}"
        )
        out.append(f"pair {pair.id} of round {pair.round}: {label}, from {len(pair.judgements)} judgements")
    out += [f"{count} pairs of round {number}" for number, count in traced.pairs.items()]
    for kind, models in (("reward model", traced.reward_models), ("policy", traced.policies)):
        out += [f"{kind}{_model_name(model)} of round {model.round}{_learning_text(model)}" for model in models]
    for f in traced.figures:
        value = f"{f.value:.3f} [{f.low:.3f}, {f.high:.3f}]" if f.low is not None else f"{f.value}"
        out.append(f"{f.figure} of round {f.round}, {f.of}: {value}, n = {f.n} ({f.file})")
    return out + [f"note: {note}" for note in traced.notes]


def _model_name(model: TracedModel) -> str:
    """Name of a model that is not its stage's first one."""
    return f" {model.model}" if model.model not in ("", "reward", "align") else ""


def _learning_text(model: TracedModel) -> str:
    weights = f", weights {(model.weights or 'not finished')[:12]}"
    if not model.part:
        return weights
    if model.model == "words" and model.part == "train":
        text = "learned from, by a bag of words, which has no steps"
    elif model.part.startswith("through the reward"):
        text = f"through the reward model, in all {model.of} steps"
    elif model.part == "train":
        text = f"in {len(model.steps)} of {model.of} steps: {', '.join(map(str, model.steps))}"
    else:
        text = {"held_out": "held out, only measured on", "nothing_to_learn": "a tie, not learned from"}.get(
            model.part, model.part
        )
    return f": {text}{weights}"


def _judgement_lines(traced: Trace) -> Iterator[str]:
    if traced.kind not in ("figure", "checkpoint"):
        for j in traced.judgements:
            author = f" by {j.annotator}" + (f" ({j.source})" if j.source is not None else "")
            yield f"judgement {j.id} of round {j.round}{author}"
        return
    by_annotator = Counter((j.round, j.annotator or "", j.source or "") for j in traced.judgements)
    for (number, annotator, source), count in sorted(by_annotator.items()):
        yield f"{count} judgements of round {number} by {annotator} ({source}); --json lists them"
