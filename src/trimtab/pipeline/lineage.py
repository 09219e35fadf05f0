"""From a judgement to the weights and figures it is in, and back.

The way there: judgement → preference → reward model (which optimiser steps) → policy (all its steps climb that reward
model; offline methods learn from the preference itself) → the figures of the policy. A later round's reward model
learns from the preferences of all rounds, and its policy starts from the earlier ones, so the path continues through
all later rounds. Only finished stages that were made from each other count.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trimtab.errors import DataError
from trimtab.pipeline.config import RunConfig, load_recipe
from trimtab.pipeline.evaluation_result import FILE as EVALUATION_FILE
from trimtab.pipeline.evaluation_result import read_evaluation
from trimtab.pipeline.learned import LEARNED, Learned
from trimtab.pipeline.reward_models import weights_file
from trimtab.pipeline.reward_result import FILE as REWARD_FILE
from trimtab.pipeline.reward_result import read_reward_result
from trimtab.pipeline.vote_files import LEARNED_THUMBS, REFUSALS, WrongRefusal, thumbs_of
from trimtab.records import Judgement, Preference, read_records
from trimtab.storage import RunFolder, read_json, read_metrics
from trimtab.trainers import HELDOUT, OfflineConfig

FIGURES = ("win_rate", "kl", "reward_accuracy")
"""Figures that can be followed back."""
NUMBERS = {"value", "low", "high", "n"}
"""What is shown of a figure's estimate."""
THUMB_PARTS = {
    "train": "learned from by the policy of",
    "held_out": "held out and only measured on in",
    "left_out": "not learned from (too long, or the alignment is not finished) in",
}
SHORTEST = 8
"""Characters of a checkpoint's hash that are enough."""


def trace(run: RunFolder, name: str, *, round: int | None = None) -> dict[str, Any]:
    """Where something in a run comes from, and what was made of it.

    Args:
        run: the run's folder.
        name: id of a judgement or vote, id of a pair, beginning of the SHA-256 of a policy's or reward model's weights,
            or a figure of :data:`FIGURES`.
        round: of which round the figure is; None: the newest.

    Returns:
        plain values with ``kind`` and, as far as there are: ``judgements``, ``pair``, ``reward_models``, ``policies``,
        ``figures``, ``notes``.

    Raises:
        DataError: nothing in the run has this name.
    """
    rounds = [_Round(r) for r in run.rounds()[: run.newest().number]]
    if round is not None and not 1 <= round <= len(rounds):
        raise DataError(f"--round {round}: this run has rounds 1 to {len(rounds)} with a finished policy")
    if name in FIGURES:
        chosen = rounds[(round or len(rounds)) - 1]
        return {"kind": "figure", "figures": list(chosen.figures(name))} | _behind(rounds, chosen, name)
    for r in rounds:
        if name in r.judgements:
            return {"kind": "judgement"} | _from_judgement(rounds, r, name)
    for r in rounds:
        if name in r.preferences:
            return {"kind": "pair"} | _from_pair(rounds, r, r.preferences[name])
    for r in rounds:
        for thumb in thumbs_of(r.run):
            if thumb.id == name:
                described = {"id": name, "round": r.number, "annotator": thumb.annotator, "source": thumb.source}
                file = r.run.stage("align") / LEARNED_THUMBS
                parts = read_json(file) if file.is_file() and r.done("align", "label") else {}
                part = next((part for part, names in parts.items() if name in names), "left_out")
                policies = [
                    {"round": e.number, "weights": e.weights("align")}
                    for e in rounds[r.number - 1 :]
                    if e.done("align")
                ]
                return {
                    "kind": "judgement",
                    "judgements": [described],
                    "policies": policies if part == "train" else [],
                    "notes": [f"a thumb, {THUMB_PARTS[part]} round {r.number}"],
                }
    for r in rounds:
        for refusal in r.refusals:
            if refusal.vote == name:
                note = "a refusal that was voted wrong: it waits for a person and is never trained on"
                return {
                    "kind": "judgement",
                    "judgements": [{"id": name, "round": r.number, "annotator": refusal.annotator}],
                    "notes": [note],
                }
    for r in rounds if len(name) >= SHORTEST else ():
        for stage in ("align", "reward"):
            if (r.weights(stage) or "").startswith(name):
                figure = "reward_accuracy" if stage == "reward" else "win_rate"
                figures = list(r.figures("reward_accuracy")) if stage == "reward" else list(r.policy_figures())
                return {"kind": "checkpoint", "figures": figures} | _behind(rounds, r, figure)
    later = ", ".join(str(r.number) for r in run.rounds()[len(rounds) :])
    unread = f" Not searched: round {later}, which is not finished or out of date." if later else ""
    total = sum(len(r.judgements) for r in rounds)
    raise DataError(
        f"{name!r}: not a judgement, pair or checkpoint of {run.path} ({total} judgements in {len(rounds)} rounds). "
        "Ids of judgements are in stages/label/judgements.jsonl, those of pairs in "
        "stages/preferences/preferences.jsonl (later rounds: rounds/N/stages/...); a "
        f"checkpoint is named by {SHORTEST} or more characters of its SHA-256 in stages/align/status.json; figures are "
        f"{', '.join(FIGURES)}. Votes that no round has collected yet are not here.{unread}"
    )


@dataclass(frozen=True)
class _Round:
    """What one round of a run holds; files are read once."""

    run: RunFolder

    @property
    def number(self) -> int:
        return self.run.number

    def done(self, stage: str, *made_from: str) -> bool:
        status = self.run.status(stage)
        done = status is not None and status.state == "done"
        return done and all(self.run.made_from(stage, earlier) for earlier in made_from)

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
        """What the stage did with each preference; None: it is not finished, or an older version did not record it."""
        file = self.run.stage(stage) / LEARNED
        return read_records(file, Learned) if file.is_file() and self.done(stage, "preferences") else None

    def weights(self, stage: str, model: str = "") -> str | None:
        status = self.run.status(stage) if self.done(stage) else None
        file = "weights.safetensors" if model in ("", stage) else weights_file(model)
        return None if status is None else (status.outputs or {}).get(file)

    def steps(self, stage: str, model: str = "") -> int:
        rows = read_metrics(self.run.stage(stage) / ("" if model == stage else model) / "metrics.jsonl")
        return int(rows[-1]["step"]) if rows else 0

    def policy_steps(self) -> int:
        """Steps behind the policy's weights, which need not be those of the last step."""
        status = self.run.status("align")
        counts = {} if status is None else status.counts or {}
        return int(counts.get("steps", self.steps("align")))

    def figures(self, name: str) -> Iterator[dict[str, Any]]:
        """A figure's values, each with the file it is from."""
        if name == "reward_accuracy":
            folder = self.run.stage("reward")
            file, result = folder / REWARD_FILE, read_reward_result(folder).evaluation if self.done("reward") else None
            if result is not None:
                accuracy = result.accuracy.model_dump(include=NUMBERS)
                yield {"figure": name, "round": self.number, "of": "held-out pairs"} | accuracy | {"file": str(file)}
            return
        if not self.done("evaluate", "align"):
            return
        folder = self.run.stage("evaluate")
        result, file = read_evaluation(folder), folder / EVALUATION_FILE
        if name == "kl" and result.kl is not None:
            kl = result.kl.estimate().model_dump(include=NUMBERS)
            yield {"figure": name, "round": self.number, "of": "nats per answer"} | kl | {"file": str(file)}
        for row in result.win_rates if name == "win_rate" else ():
            if row.model == "policy":
                rate = row.estimate().model_dump(include=NUMBERS)
                of = f"policy over {row.against}, judged by {row.judge}"
                yield {"figure": name, "round": self.number, "of": of} | rate | {"file": str(file)}

    def policy_figures(self) -> Iterator[dict[str, Any]]:
        """The figures of the round's policy."""
        yield from self.figures("win_rate")
        yield from self.figures("kl")


def _from_judgement(rounds: list[_Round], r: _Round, name: str) -> dict[str, Any]:
    judgement = r.judgements[name]
    traced: dict[str, Any] = {"judgements": [_described(judgement, r)]}
    preference = next((p for p in r.preferences.values() if name in p.judgements), None)
    if preference is not None:
        return traced | _made_of(rounds, r, preference)
    label = r.config.label
    if label is not None and judgement.annotator in label.without:
        why = f"left out: label.without names {judgement.annotator!r}"
    elif judgement.ranks is None:
        why = f"no ranking was given ({judgement.verdict})"
    elif not r.done("preferences", "label"):
        why = "the preferences of its round are not finished"
    else:
        why = "no preference was made from it: its item's answers all tie, or another judgement settled it"
    return traced | {"notes": [why]}


def _described(judgement: Judgement, r: _Round) -> dict[str, Any]:
    fields = ("id", "item", "annotator", "source", "criterion", "verdict", "created_at")
    return {"round": r.number} | {name: getattr(judgement, name) for name in fields}


def _from_pair(rounds: list[_Round], r: _Round, preference: Preference) -> dict[str, Any]:
    known = [_described(r.judgements[j], r) for j in preference.judgements if j in r.judgements]
    notes = [] if preference.judgements else ["it came from a file of preferences, which names no judgements"]
    return {"judgements": known} | _made_of(rounds, r, preference, notes)


def _made_of(rounds: list[_Round], r: _Round, preference: Preference, notes: list[str] | None = None) -> dict[str, Any]:
    """The pair, and the reward models, policies and figures that it is in."""
    notes, models, policies = list(notes or ()), [], []
    figures: list[dict[str, Any]] = []
    for later in rounds[r.number - 1 :]:
        for stage, entries in (("reward", models), ("align", policies)):
            learned = later.learned(stage)
            own = [x for x in learned or () if (x.preference, x.round) == (preference.id, r.number)]
            entries += [
                {"round": later.number, "model": x.model, "part": x.part, "steps": list(x.steps)}
                | {"of": later.steps(stage, x.model), "weights": later.weights(stage, x.model)}
                for x in own
            ]
            if stage == "reward" and learned is None and later.done("reward"):
                notes.append(f"round {later.number}: the reward model's steps were not recorded, or it is out of date")
            if stage == "reward" and learned is not None and not own:
                notes.append(f"round {later.number}: the reward model could not use this pair (ties, or too long)")
        figures += later.figures("reward_accuracy")
        offline = isinstance(later.config.align, OfflineConfig)
        if offline and later.number == r.number and later.done("align") and later.learned("align") is None:
            notes.append(f"round {later.number}: the policy's steps were not recorded, or it is out of date")
        by_reward = any(m["part"] == "train" and m["round"] == later.number and m["model"] != HELDOUT for m in models)
        if later.done("align") and not offline and by_reward and later.run.made_from("align", "reward"):
            steps = later.policy_steps()
            policies.append(
                {"round": later.number, "part": "through the reward model", "steps": [1, steps], "of": steps}
                | {"weights": later.weights("align")}
            )
        elif later.done("align") and any(_trained(p) and p["round"] < later.number for p in policies):
            policies.append(
                {"round": later.number, "part": "through the policy it starts from", "steps": [], "of": 0}
                | {"weights": later.weights("align")}
            )
        if any(_trained(p) and p["round"] == later.number for p in policies):
            figures += later.policy_figures()
    pair = {
        "id": preference.id,
        "round": r.number,
        "ranks": list(preference.ranks),
        "probability": preference.probability,
        "weight": preference.weight,
        "judgements": list(preference.judgements),
    }
    return {"pair": pair, "reward_models": models, "policies": policies, "figures": figures, "notes": notes}


def _trained(policy: Mapping[str, Any]) -> bool:
    """True: the pair changed the policy's weights."""
    return policy["part"] not in ("held_out", "nothing_to_learn")


def _behind(rounds: list[_Round], r: _Round, figure: str) -> dict[str, Any]:
    """The weights that a figure is about, and all judgements behind them, by round."""
    judgements, notes = [], []
    for earlier in rounds[: r.number]:
        used = {j for p in earlier.preferences.values() for j in p.judgements}
        judgements += [_described(j, earlier) for name, j in earlier.judgements.items() if name in used]
        if not earlier.judgements:
            notes.append(f"round {earlier.number} has no judgements: its preferences came from a file")
    reward = [{"round": r.number, "weights": r.weights("reward")}] if r.done("reward") else []
    policy = [{"round": e.number, "weights": e.weights("align")} for e in rounds[: r.number] if e.done("align")]
    pairs = {e.number: len(e.preferences) for e in rounds[: r.number]}
    return {
        "judgements": judgements,
        "pairs": pairs,
        "reward_models": reward,
        "policies": [] if figure == "reward_accuracy" else policy,
        "notes": notes,
    }


def lines(traced: Mapping[str, Any]) -> list[str]:
    """The result of :func:`trace` in words, from the judgements to the figures."""
    several = traced["kind"] in ("figure", "checkpoint")
    out = list(_judgement_lines(traced, several=several))
    if "pair" in traced:
        pair = traced["pair"]
        label = (
            f"ranks {pair['ranks']}" if pair["probability"] is None else f"P(first is better) {pair['probability']:.2f}"
        )
        out.append(f"pair {pair['id']} of round {pair['round']}: {label}, from {len(pair['judgements'])} judgements")
    out += [f"{count} pairs of round {number}" for number, count in traced.get("pairs", {}).items()]
    for name, kind in (("reward_models", "reward model"), ("policies", "policy")):
        out += [f"{kind}{_other(entry)} of round {entry['round']}{_part(entry)}" for entry in traced.get(name, ())]
    for f in traced.get("figures", ()):
        value = f"{f['value']:.3f} [{f['low']:.3f}, {f['high']:.3f}]" if f["low"] is not None else f"{f['value']}"
        out.append(f"{f['figure']} of round {f['round']}, {f['of']}: {value}, n = {f['n']} ({f['file']})")
    return out + [f"note: {note}" for note in traced.get("notes", ())]


def _other(entry: Mapping[str, Any]) -> str:
    """Name of a model that is not its stage's first one."""
    return f" {entry['model']}" if entry.get("model", "reward") not in ("reward", "align") else ""


def _part(entry: Mapping[str, Any]) -> str:
    weights = f", weights {(entry['weights'] or 'not finished')[:12]}"
    if "part" not in entry:
        return weights
    if entry.get("model") == "words" and entry["part"] == "train":
        how = "learned from, by a bag of words, which has no steps"
    elif entry["part"].startswith("through the reward"):
        how = f"through the reward model, in all {entry['of']} steps"
    elif entry["part"] == "train":
        how = f"in {len(entry['steps'])} of {entry['of']} steps: {', '.join(map(str, entry['steps']))}"
    else:
        how = {"held_out": "held out, only measured on", "nothing_to_learn": "a tie, not learned from"}.get(
            entry["part"], entry["part"]
        )
    return f": {how}{weights}"


def _judgement_lines(traced: Mapping[str, Any], *, several: bool) -> Iterator[str]:
    judgements = traced.get("judgements", [])
    if not several:
        for j in judgements:
            by = f" by {j['annotator']}" + (f" ({j['source']})" if "source" in j else "")
            yield f"judgement {j['id']} of round {j['round']}{by}"
        return
    by_annotator: dict[tuple[int, str, str], int] = {}
    for j in judgements:
        key = (j["round"], j["annotator"], j["source"])
        by_annotator[key] = by_annotator.get(key, 0) + 1
    for (number, annotator, source), count in sorted(by_annotator.items()):
        yield f"{count} judgements of round {number} by {annotator} ({source}); --json lists them"
