"""Measures a run's reward model on preferences: the run's held-out ones, or those of any file."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from trimtab.errors import ConfigError, DataError, TrainingError
from trimtab.evals import EditEffect, RewardModelEval, edit_effects, evaluate_reward_model
from trimtab.evals.charts import Line, line_chart, percent
from trimtab.evals.reward_bench import is_reward_bench, read_reward_bench, reward_bench_scores
from trimtab.feedback import Estimate
from trimtab.feedback.intervals import clustered_share
from trimtab.files import write_atomic, write_json
from trimtab.models import Chat, Role
from trimtab.pipeline.config import RunConfig
from trimtab.pipeline.context import Context
from trimtab.pipeline.learning import usable_rankings
from trimtab.pipeline.objectives import baselines, evaluations
from trimtab.pipeline.reward_models import load_ranking_scorer, reward_backbone, reward_parts
from trimtab.pipeline.small_results import read_agreement
from trimtab.pipeline.ui import Ui
from trimtab.records import Preference, Record
from trimtab.storage import RunFolder
from trimtab.trainers import (
    Ranking,
    encode_preferences,
    hidden_states,
    known_answers,
    split_holdout,
)

HELDOUT = "heldout"
"""Name of the preferences that were kept out of training."""
MAX_EDITED = 200
"""Maximum number of preferences whose answers are edited and scored again."""
MAX_FITTED = 512
"""Maximum number of training preferences whose hidden states define which answers are unusual."""


class RewardEvaluation(Record):
    """``reward-evaluation/NAME.json``: a reward model measured on preferences."""

    source: str
    """``heldout``, or the file."""
    evaluation: RewardModelEval
    """Accuracy, calibration and baselines."""
    edits: tuple[EditEffect, ...]
    """Effects of edits of the answers."""
    outliers: Estimate
    """Share of answers that are further from the training answers than 99 % of the training answers are."""
    ceiling: Estimate | None
    """How often one annotator agrees with the others; None: the preferences are from a file, or it was not measured."""
    counts: dict[str, int]
    """Number of preferences measured, and of those left out, by reason."""
    objectives: dict[str, RewardModelEval] = Field(default_factory=dict)
    """Evaluation of each objective; empty, and not in the file, if the reward model has one score."""
    reward_bench: dict[str, Estimate] = Field(default_factory=dict)
    """Score of each subset; empty, and not in the file, for files other than RewardBench 2."""

    def as_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        absent = {name: True for name in ("objectives", "reward_bench") if not getattr(self, name)}
        return self.model_dump(mode="json", exclude={"ceiling": {"name"}, **absent})


def evaluate_reward(
    config: RunConfig, recipe: Path, run: RunFolder, source: str, *, slice_by: str | None = None
) -> RewardEvaluation:
    """Score preferences with the trained reward model, and write the result.

    Args:
        config: the resolved recipe, whose reward stage is done.
        recipe: its file.
        run: the run's folder.
        source: ``heldout``, or a file of preferences, or a RewardBench 2 file.
        slice_by: a key of the metadata whose values are the slices.

    Raises:
        ConfigError: the recipe has no reward model.
        DataError: nothing can be scored.
    """
    if config.reward is None:
        raise ConfigError("this recipe has no reward section, so there is no reward model to evaluate; add one")
    context = Context(config=config, recipe=recipe, run=run, ui=Ui())
    role, score = load_ranking_scorer(context, reward_backbone(context, None))
    train, held = _split(context, role)
    bench = source != HELDOUT and is_reward_bench(Path(context.data_path(source)))
    measured, counts = (_require_heldout(held), {}) if source == HELDOUT else _read(context, role, source, bench=bench)
    scores = score(measured.rankings, measured.preferences)
    strict = [i for i, p in enumerate(measured.preferences) if len(set(p.ranks)) > 1]
    chosen, chosen_scores = [measured.preferences[i] for i in strict], [scores[i] for i in strict]
    simple = baselines(chosen, train.preferences)
    if bench and slice_by is None:
        slice_by = "subset"
    result = evaluate_reward_model(chosen, chosen_scores, baselines=simple, slice_by=slice_by)
    edits = edit_effects(
        chosen[:MAX_EDITED],
        chosen_scores[:MAX_EDITED],
        lambda changed: _rescored(config, role.backbone.chat, score, changed),
    )
    written = RewardEvaluation(
        source=source,
        evaluation=result,
        edits=tuple(edits),
        outliers=_outliers(role, train, measured),
        ceiling=_ceiling(run) if source == HELDOUT else None,
        counts={
            "preferences": len(chosen),
            "soft labels without ranks": len(measured.preferences) - len(chosen),
            "prompts of training": len({p.prompt.id for p in chosen} & {p.prompt.id for p in train.preferences}),
        }
        | counts,
        objectives=dict(evaluations(chosen, chosen_scores, simple)) if config.reward.objectives else {},
        reward_bench=reward_bench_scores(chosen, chosen_scores) if bench else {},
    )
    _write(run.path / "reward-evaluation", written)
    return written


@dataclass(frozen=True)
class _Encoded:
    """Preferences, each with its tokens."""

    preferences: list[Preference]
    rankings: list[Ranking]


def _split(context: Context, role: Role) -> tuple[_Encoded, _Encoded]:
    """The run's own preferences: training and held-out, split as in the reward stage."""
    config = context.config.reward
    assert config is not None
    rankings, preferences, _ = usable_rankings(
        context, role.backbone.chat, ties=config.ties, all_rounds=True, objectives=config.objectives
    )
    ids = [p.prompt.id for p in preferences]
    train, held = split_holdout(ids, config.holdout, context.seed("reward"))
    parts = reward_parts(config, ids, train, seed=context.seed("reward halves"))
    train = sorted({index for part in parts if not part.judges for index in part.places})
    first, second = (
        _Encoded([preferences[i] for i in indices], [rankings[i] for i in indices]) for indices in (train, held)
    )
    return first, second


def _require_heldout(held: _Encoded) -> _Encoded:
    """The run's held-out preferences.

    Raises:
        DataError: there are none.
    """
    if not held.preferences:
        raise DataError("reward.holdout kept no preference out of training; raise it, or name a file to --evaluate")
    return held


def _read(context: Context, role: Role, source: str, *, bench: bool) -> tuple[_Encoded, dict[str, int]]:
    """The preferences of a file that can be scored, and the number of others by reason.

    Raises:
        DataError: none can be scored.
    """
    assert context.config.reward is not None
    objectives = context.config.reward.objectives
    path = Path(context.data_path(source))
    records = read_reward_bench(path) if bench else list(context.load(source, Preference).records)
    usable = [p for p in records if p.criterion in objectives] if objectives else records
    other_criteria = len(records) - len(usable)
    rankings, preferences, left_out = encode_preferences(role.backbone.chat, usable, objectives=objectives)
    counts = context.left_out(left_out, len(usable), "preferences") | {
        reason: left_out[reason] for reason in ("tied", "identical")
    }
    if objectives:
        counts |= {"other_criteria": other_criteria}
    if not rankings:
        hint = f"; their criterion has to be one of {', '.join(objectives)}" if other_criteria else ""
        raise DataError(f"{source}: none of {len(records)} preferences can be scored: {counts}{hint}")
    return _Encoded(preferences, rankings), counts


def _write(folder: Path, result: RewardEvaluation) -> None:
    """Write the numbers and the reliability plot under the source's name."""
    folder.mkdir(exist_ok=True)
    name = re.sub(r"[^\w.-]+", "-", Path(result.source).name)
    write_json(folder / f"{name}.json", result.as_json())
    write_atomic(folder / f"{name}.svg", str(_reliability(result.evaluation)))


def _rescored(
    config: RunConfig,
    chat: Chat,
    score: Callable[[Sequence[Ranking], Sequence[Preference]], list[list[float]]],
    preferences: Sequence[Preference],
) -> list[list[float] | None]:
    """Scores of all answers; None for a preference that no longer fits the model."""
    assert config.reward is not None
    rankings, used, _ = encode_preferences(chat, preferences, objectives=config.reward.objectives)
    scores = dict(zip((p.id for p in used), score(rankings, used), strict=True))
    return [scores.get(p.id) for p in preferences]


def _outliers(role: Role, train: _Encoded, measured: _Encoded) -> Estimate:
    """Share of answers further from the training answers than 99 % of the training answers are; clustered by prompt."""
    try:
        training_answers = known_answers(
            hidden_states(role, train.rankings[:MAX_FITTED]), _prompts(train.preferences[:MAX_FITTED])
        )
    except TrainingError as error:
        return Estimate(reason=str(error))
    is_outlier = training_answers.outliers(hidden_states(role, measured.rankings)).double().tolist()
    return clustered_share(zip(is_outlier, _prompts(measured.preferences), strict=True))


def _prompts(preferences: Sequence[Preference]) -> list[str]:
    """The prompt of each answer."""
    return [p.prompt.id for p in preferences for _ in p.completions]


def _ceiling(run: RunFolder) -> Estimate | None:
    """How often one annotator agrees with the others, if the run measured it."""
    folder = run.stage("preferences")
    return read_agreement(folder).get("leave_one_out") if (folder / "agreement.json").exists() else None


def _reliability(result: RewardModelEval) -> Any:
    """The reliability plot before and after temperature scaling."""
    lines = [
        Line(
            name=name,
            x=[r.confidence for r in rows],
            y=[r.accuracy for r in rows],
            low=[r.accuracy_low for r in rows],
            high=[r.accuracy_high for r in rows],
            whiskers=True,
            tone=tone,
        )
        for name, rows, tone in (("as trained", result.calibration, "a"), ("scaled", result.calibrated, "b"))
    ]
    ideal = Line(name="ideal", x=(0.5, 1.0), y=(0.5, 1.0), tone="quiet")
    return line_chart(
        [*lines, ideal],
        title="Calibration",
        x_label="confidence of the reward model",
        y_label="how often it was right",
        show=percent,
        show_x=percent,
    )


def evaluation_lines(written: RewardEvaluation) -> list[str]:
    """The result in words, one line each."""
    result = written.evaluation
    lines = [f"accuracy {_percent(result.accuracy)} pairs, {result.prompts} prompts"]
    lines.append("  counted: " + ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in written.counts.items()))
    if trained := written.counts["prompts of training"]:
        lines.append(
            f"  {trained} of {result.prompts} prompts are in the reward model's training set, so these numbers are too "
            "good; evaluate on other prompts"
        )
    lines += [f"  {b.name}: {_percent(b.accuracy)}; gain {_points(b.gain)}" for b in result.baselines]
    if written.ceiling:
        lines.append(f"  one annotator against the others: {_percent(written.ceiling)}")
    lines += [f"  {e.name}: {_percent(e)}" for e in result.slices]
    for name, objective in written.objectives.items():
        lines.append(
            f"objective {name}: accuracy {_percent(objective.accuracy)} pairs, log loss {objective.log_loss:.3f}"
        )
        lines += [f"  {b.name}: {_percent(b.accuracy)}; gain {_points(b.gain)}" for b in objective.baselines]
    lines.append(
        f"Brier {result.brier:.3f}, log loss {result.log_loss:.3f}, ECE {result.ece:.3f}, after temperature "
        f"{result.calibrated_ece:.3f}"
    )
    lines.append(f"correlation with length {_decimal(result.length_correlation)}")
    lines.append(f"answers unlike the training answers: {_percent(written.outliers)}")
    for effect in written.edits:
        lines.append(
            f"edit {effect.edit}: raises {_percent(effect.raised)}, by {_decimal(effect.change)} standard deviations; "
            f"worse answers that overtake: {_percent(effect.overtakes)}"
        )
    return lines + [f"RewardBench 2, {name}: {_percent(score)}" for name, score in written.reward_bench.items()]


def _percent(e: Estimate) -> str:
    if e.value is None:
        return f"unknown ({e.reason})"
    ends = f" [{e.low:.1%}, {e.high:.1%}]" if e.low is not None and e.high is not None else ""
    return f"{e.value:.1%}{ends} of {e.n}"


def _points(e: Estimate) -> str:
    assert e.value is not None and e.low is not None and e.high is not None
    return f"{100 * e.value:+.1f} points [{100 * e.low:+.1f}, {100 * e.high:+.1f}]"


def _decimal(e: Estimate) -> str:
    if e.value is None:
        return f"unknown ({e.reason})"
    ends = f" [{e.low:+.2f}, {e.high:+.2f}]" if e.low is not None and e.high is not None else ""
    return f"{e.value:+.2f}{ends}"
