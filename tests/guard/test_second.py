"""The band, the threshold and the decisions of the second stage, against enumeration and hand calculation."""

import json
from dataclasses import replace
from math import exp, log
from pathlib import Path

import numpy as np
import pytest
import torch

from trimtab.cli.app import run_app
from trimtab.constitution import Constitution, load_constitution
from trimtab.errors import ConfigError, DataError
from trimtab.files import sha256_file, sha256_json
from trimtab.guard import Guard, GuardConfig
from trimtab.guard.attacks import ATTACKS
from trimtab.guard.dataset import Example, from_constitution, ordinary
from trimtab.guard.detector import Detector, Fitted, Member, prepare
from trimtab.guard.last_layer import LastLayer, LowRank
from trimtab.guard.lexical import Lexical
from trimtab.guard.probe import Probe
from trimtab.guard.scores import auroc
from trimtab.guard.second import Band, Calibration, FittedSecond, SecondStage, band_of, fit_second, second_threshold
from trimtab.guard.settings import GuardedModel, TrainingFacts
from trimtab.guard.storage import load_guard, read_settings, save_guard
from trimtab.guard.training import second_stage_warnings
from trimtab.pipeline.guarding import Explanation, explain_request, train_and_report
from trimtab.records import Message
from trimtab.testing import save_model, sentences, tiny_backbone, tiny_model


def test_the_band_is_the_widest_that_holds_the_limit():
    draw = np.random.default_rng(0)
    for _ in range(50):
        scores, y = draw.integers(0, 30, 80) / 30, draw.integers(0, 2, 80)
        usual = (y == 0) & (draw.random(80) < 0.7)
        band = band_of(scores, y, usual, 0.1)
        inside = [s for s in scores[usual] if band.low < s <= band.high]
        assert len(inside) <= 0.1 * usual.sum() and band.share == len(inside) / usual.sum()
        assert band.on == "ordinary" and band.counted == usual.sum()
        wider = [low for low in {0.0, *scores.tolist()} if low < band.low]
        assert all(sum(low < s for s in scores[usual]) > 0.1 * usual.sum() for low in wider)
        assert not [s for s in scores[y == 0] if s > band.high]


def test_too_few_ordinary_requests_let_all_harmless_ones_count():
    scores, y = np.linspace(0, 1, 40), np.zeros(40, int)
    band = band_of(scores, y, np.arange(40) < 9, 0.1)
    assert (band.on, band.counted, band.share) == ("harmless", 40, 0.1)
    assert band_of(scores, y, np.arange(40) < 10, 0.1).on == "ordinary"


def test_too_few_harmless_texts_for_a_band_are_refused_in_its_own_options():
    with pytest.raises(DataError, match=r"at most 5\.0% .* needs 20 harmless texts or more and there are 19") as caught:
        band_of(np.linspace(0, 1, 19), np.zeros(19, int), np.ones(19, bool), 0.05)
    assert "--escalate" in str(caught.value) and "--budget" not in str(caught.value)


def test_a_first_stage_over_the_budget_leaves_nothing_to_block_to_the_second():
    first, second = np.array([0.1, 0.4, 0.5, 0.8, 0.9]), np.array([0.0, 0.7, 0.95, 0.0, 0.0])
    band = Band(low=0.3, high=0.6, share=0.0, counted=0, on="harmless")
    assert second_threshold(first, second, band, 0.7, 0.2) == 0.95  # two of five are above the band, one is allowed


def test_both_stages_keep_the_budget_with_the_lowest_threshold():
    draw = np.random.default_rng(1)
    for _ in range(50):
        first, second = draw.random(60), draw.integers(0, 20, 60) / 20
        band = Band(low=0.5, high=0.9, share=0.0, counted=0, on="harmless")
        limit = sorted(first)[-7]  # the first stage alone blocks six, a tenth
        threshold = second_threshold(first, second, band, limit, 0.1)
        inside = (first > 0.5) & (first <= 0.9)

        def blocked(at, inside=inside, first=first, second=second, limit=limit):
            return int(np.where(inside, second > at, first > limit).sum())

        assert blocked(threshold) <= 6
        assert all(blocked(at) > 6 for at in {-1.0, *second[inside].tolist()} if at < threshold)


def test_ordinary_requests_have_no_restricted_relative():
    rows = [
        Example(text="a", restricted=True, group="x"),
        Example(text="b", restricted=False, group="x"),
        Example(text="c", restricted=False, group="y"),
        Example(text="d", restricted=False, group="y", family="hex"),
        Example(text="e", restricted=False, group="z", kind="answer"),
    ]
    assert ordinary(rows) == [False, False, True, False, False]


# A guard whose first stage is told the log-odds of each text, and whose adapter too --------------------------------


class Told(Lexical):
    """A lexical member with given log-odds by text; 0 for others."""

    def __init__(self, odds: dict[str, float]) -> None:
        self.odds = odds

    def logits(self, texts):
        return np.array([self.odds.get(text, 0.0) for text in texts])


class ToldLayer:
    """A last layer with given log-odds by text, which counts what it reads."""

    size = 0

    def __init__(self, odds: dict[str, float]) -> None:
        self.odds, self.read = odds, []

    def logits(self, backbone, texts, *, adapter=None):
        self.read += texts
        return np.array([self.odds[text] for text in texts])


def told(first: dict[str, float], second: dict[str, float], **more) -> Guard:
    """First threshold 0.7; texts between 0.5 and 0.9 are escalated; second threshold 0.6."""
    detector = Detector(members=(Member(name="lexical", model=Told(first)),), slope=1.0, offset=0.0, threshold=0.7)
    stage = SecondStage(
        model=ToldLayer(second),
        calibration=Calibration(slope=2.0, offset=1.0, mean_slope=1.0, mean_offset=-0.5),
        band=Band(low=0.5, high=0.9, share=0.1, counted=100, on="ordinary"),
        threshold=0.6,
    )
    return Guard(detector, second=stage, backbone=object(), **more)


def user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def test_only_texts_in_the_band_are_read_again_and_both_decide():
    first = {"calm": -1.0, "doubt": 0.6, "worse": 1.5, "sure": 3.0}  # σ: 0.27, 0.65, 0.82, 0.95
    guard = told(first, {"doubt": 0.5, "worse": -2.0})
    verdicts = {name: guard.check(user(name)) for name in first}
    assert guard.second.model.read == ["doubt", "worse"]
    assert [verdicts[n].escalated for n in first] == [False, True, True, False]
    # doubt: z_2 = 2 · 0.5 + 1 = 2, (0.6 + 2) / 2 − 0.5 = 0.8; worse: z_2 = −3, (1.5 − 3) / 2 − 0.5 = −1.25
    assert verdicts["doubt"].score == pytest.approx(1 / (1 + exp(-0.8))) and verdicts["doubt"].blocked
    assert verdicts["worse"].score == pytest.approx(1 / (1 + exp(1.25))) and not verdicts["worse"].blocked
    assert verdicts["doubt"].threshold == verdicts["worse"].threshold == 0.6
    assert verdicts["doubt"].members == {"lexical": 0.6, "adapter": 2.0}
    assert not verdicts["calm"].blocked and verdicts["calm"].threshold == 0.7 and verdicts["sure"].blocked


def test_each_view_above_the_band_is_read_and_the_highest_counts():
    hidden = "doubt" * 3
    text = hidden.encode().hex()
    guard = told({hidden: 0.6, text: 0.4, f"{text} ": 0.0}, {hidden: 2.0, text: -2.0})
    verdict = guard.check(user(text))
    assert verdict.view == "hex" and verdict.blocked and set(guard.second.model.read) == {hidden, text}
    guard = told({hidden: 0.6, text: -0.4}, {hidden: -2.0})
    assert not guard.check(user(text)).blocked and guard.second.model.read == [hidden]


def test_a_text_beyond_doubt_spares_the_second_stage():
    guard = told({"sure": 3.0, "doubt": 0.6}, {"doubt": -9.0})
    assert guard.check([*user("doubt"), *user("sure")]).blocked and guard.second.model.read == []


@pytest.mark.parametrize("fault", [float("nan"), None])
def test_a_failing_second_stage_blocks_or_passes_by_choice_and_frees_nothing_that_was_blocked(fault):
    odds = {"doubt": fault, "worse": fault} if fault is not None else {}
    for on_error, blocked in (("closed", True), ("open", False)):
        guard = told({"doubt": 0.6, "worse": 1.5, "calm": -1.0}, odds, on_error=on_error)
        verdict = guard.check(user("doubt"))  # the first stage alone lets it pass
        assert verdict.blocked is blocked and verdict.error
        verdict = guard.check(user("worse"))  # the first stage alone blocks it
        assert verdict.blocked and "second stage failed" in verdict.error and verdict.threshold == 0.7
        assert guard.check(user("calm")).error is None


@pytest.mark.parametrize(("on_error", "blocked"), [("closed", True), ("open", False)])
@pytest.mark.parametrize("fault", [float("nan"), float("-inf")])
@pytest.mark.parametrize("order", [["broken", "calm"], ["calm", "broken"]])
def test_a_first_score_that_is_no_number_blocks_or_passes_by_choice(on_error, blocked, fault, order):
    guard = told({"broken": fault, "calm": -1.0}, {}, on_error=on_error)
    verdict = guard.check([message for text in order for message in user(text)])
    assert verdict.blocked is blocked and "NaN or infinity for a request; train the guard again" in verdict.error


@pytest.mark.parametrize("text", ["sure", "doubt"])
def test_a_number_that_blocks_counts_beside_one_that_is_none(text):
    for turns in (["broken", text], [text, "broken"]):
        guard = told({"broken": float("nan"), "sure": 3.0, "doubt": 0.6}, {"doubt": 2.0}, on_error="open")
        verdict = guard.check([message for turn in turns for message in user(turn)])
        assert verdict.blocked and verdict.error is None and 0.6 < verdict.score < 1
    guard = told({"broken": float("nan"), "worse": 1.5}, {"worse": -9.0}, on_error="closed")
    assert guard.check([*user("worse"), *user("broken")]).error  # the second stage frees what the first blocked


# Fitting and files --------------------------------------------------------------------------------------------------


def first_stage(labels: np.ndarray, signal: float) -> Fitted:
    """A first stage with Gaussian log-odds: N(±signal, 1)."""
    z = np.random.default_rng(0).normal(size=len(labels)) + signal * (2 * labels - 1)
    scores = 1 / (1 + np.exp(-z))
    threshold = float(sorted(scores[labels == 0])[-1 - int(0.02 * (labels == 0).sum())])
    detector = Detector(members=(Member(name="lexical", model=Told({})),), slope=1.0, offset=0.0, threshold=threshold)
    return Fitted(detector=detector, out_of_fold=scores, view_odds=list(z[:, None]), member_scores={}, layer_scores={})


def fitted_on(texts: list[str], labels: np.ndarray):
    prepared = prepare(texts)
    first = first_stage(labels, 0.5)
    odds = [np.full(len(p.views), z[0]) for p, z in zip(prepared, first.view_odds, strict=True)]
    first = replace(first, view_odds=odds)
    usual = [not label for label in labels]
    return fit_second(
        tiny_backbone(), prepared, labels.tolist(), range(len(labels)), first, ordinary=usual, budget=0.02, escalate=0.1
    )  # fmt: skip


def test_a_second_stage_that_sees_the_difference_blocks_what_is_escalated_within_the_budget():
    texts, labels = sentences(120), np.arange(120) % 2
    texts = [f"yellow {text}" if label else text for text, label in zip(texts, labels, strict=True)]
    fitted = fitted_on(texts, labels)
    assert fitted.stage.band.share <= 0.1 and fitted.stage.band.counted == 60
    assert fitted.auroc["adapter"] > 0.95 and fitted.auroc["both"] > fitted.auroc["first stage"] + 0.1
    reached = (first_stage(labels, 0.5).out_of_fold > fitted.stage.band.low)[
        labels == 1
    ].mean()  # the most it can block
    assert fitted.blocked["first stage"] + 0.1 < fitted.blocked["both"] <= reached < fitted.blocked["both"] + 0.1


def test_a_second_stage_that_sees_nothing_says_so():
    texts, labels = sentences(120), np.random.default_rng(5).integers(0, 2, 120)
    fitted = fitted_on(texts, labels)
    assert abs(fitted.auroc["adapter"] - 0.5) < 0.15


def test_all_figures_of_the_parts_are_of_the_raw_text():
    texts, labels = [text.encode().hex() for text in sentences(40)], np.arange(40) % 2
    prepared, first = prepare(texts), first_stage(np.arange(40) % 2, 0.5)
    assert all(len(p.views) > 1 for p in prepared)
    odds = [np.r_[z[0], np.full(len(p.views) - 1, 5.0)] for p, z in zip(prepared, first.view_odds, strict=True)]
    fitted = fit_second(
        tiny_backbone(), prepared, labels.tolist(), range(40), replace(first, view_odds=odds),
        ordinary=[not label for label in labels], budget=0.05, escalate=0.1,
    )  # fmt: skip
    raw = [float(z[0]) for z in first.view_odds]
    assert fitted.auroc["first stage"] == pytest.approx(auroc(raw, labels.tolist())) and fitted.auroc["both"] != 0.5


def test_one_kind_in_a_single_group_is_refused_with_the_numbers():
    labels = np.arange(40) % 2
    with pytest.raises(DataError, match=r"there are 1 groups with restricted texts and 20 with harmless ones"):
        fit_second(
            tiny_backbone(), prepare(sentences(40)), labels.tolist(), np.where(labels, 99, np.arange(40)).tolist(),
            first_stage(labels, 0.5), ordinary=[not label for label in labels], budget=0.05, escalate=0.1,
        )  # fmt: skip


def saved(folder: Path, second: SecondStage | None) -> None:
    """A guard of words with this second stage."""
    lexical = Lexical.fit(["red tea", "red cup", "blue tea", "blue cup"], [1, 1, 0, 0])
    detector = Detector(members=(Member(name="lexical", model=lexical),), slope=1.0, offset=0.0, threshold=0.5)
    model = GuardedModel(name="tiny", identity="", width=32, layers=3)
    facts = TrainingFacts(constitution="", guard_version="", config={}, counts={}, layers=(), layer_scores={})
    save_guard(
        folder, detector, second=second, model=model, facts=facts, output=None, rules=None, reasons={}, layer=None
    )


def test_a_saved_second_stage_is_the_same(tmp_path):
    backbone = tiny_backbone()
    names = {"self_attn.q_proj": (32, 32), "mlp.down_proj": (32, 64)}
    draw = torch.Generator().manual_seed(0)
    lora = {
        n: LowRank(torch.randn(8, i, generator=draw), torch.randn(o, 8, generator=draw)) for n, (o, i) in names.items()
    }
    stage = SecondStage(
        model=LastLayer(lora, Probe(np.arange(32, dtype=np.float32), 0.25)),
        calibration=Calibration(slope=0.5, offset=log(2), mean_slope=1.5, mean_offset=-0.1),
        band=Band(low=0.2, high=0.8, share=0.07, counted=41, on="ordinary"),
        threshold=0.4,
    )
    saved(tmp_path / "guard", stage)
    restored = load_guard(tmp_path / "guard", backbone).second
    assert (restored.band, restored.calibration, restored.threshold) == (stage.band, stage.calibration, stage.threshold)
    texts = ["red tea and toast", "blue"]
    np.testing.assert_array_equal(restored.model.logits(backbone, texts), stage.model.logits(backbone, texts))
    with pytest.raises(ConfigError, match="was given no model"):
        load_guard(tmp_path / "guard", None)


def test_a_guard_of_the_format_before_is_read(tmp_path):
    saved(tmp_path / "guard", None)
    settings = json.loads((tmp_path / "guard" / "guard.json").read_text())
    old = {name: value for name, value in settings.items() if name not in ("second", "version")} | {"format": 1}
    files = [sha256_file(tmp_path / "guard" / name) for name in ("guard.safetensors", "vocabulary.json")]
    version = sha256_json([old, *files])[:12]
    (tmp_path / "guard" / "guard.json").write_text(json.dumps(old | {"version": version}))
    assert load_guard(tmp_path / "guard", None).second is None


def explain(folder: Path, text: str) -> Explanation:
    return explain_request(folder, text, model=None, context=2048)


def escalated_text(folder: Path, constitution: Constitution) -> str:
    """A restricted request with an ordinary one behind it, in the band of a guard."""
    restricted = [e.text for e in from_constitution(constitution) if e.restricted and e.kind == "request"]
    texts = (f"{text} {usual}" for text in restricted[:6] for usual in sentences(6))
    return next(text for text in texts if explain(folder, text).escalated)


def test_what_people_should_know_about_a_second_stage():
    def lines(on: str, both: float) -> list[str]:
        band = Band(low=0.5, high=0.9, share=0.1, counted=100, on=on)
        stage = replace(told({}, {}).second, band=band)
        second = FittedSecond(stage=stage, auroc={}, blocked={"first stage": 0.25, "both": both})
        return second_stage_warnings(second, 7, 0.1)

    assert lines("ordinary", 0.26) == []
    [line] = lines("ordinary", 0.25)
    assert "25.0% of restricted texts are blocked with it and 25.0% without" in line and "leave --escalate out" in line
    [line] = lines("harmless", 0.26)
    assert "7 ordinary requests" in line and "all 100 harmless texts" in line


def test_train_evaluate_and_explain_with_a_second_stage(tmp_path, monkeypatch, capsys):
    attacks = {name: ATTACKS[name] for name in ("role play", "no vowels")}
    monkeypatch.setattr("trimtab.guard.evaluation.ATTACKS", attacks)
    default = load_constitution("default")
    rules = tuple(r.model_copy(update={"twins": r.twins[:4]}) for r in default.guard[:2])
    small = default.model_copy(update={"guard": rules})
    save_model(tmp_path / "model", tiny_model(layers=2, width=16, context=2048))
    data = tmp_path / "usual.jsonl"
    rows = [json.dumps({"text": text, "restricted": False}) for text in sentences(40)]
    data.write_text("\n".join(rows))
    config = GuardConfig(budget=0.05, planted=24, layers=(1,), held_out=0.5, escalate=0.1)
    lines = train_and_report(
        small, config, tmp_path / "guard", data=[data], model=str(tmp_path / "model"), context=2048
    )  # fmt: skip
    text = "\n".join(lines)
    assert "second stage: The second stage reads scores above" in text and "held-out attack families" in text
    report = json.loads((tmp_path / "guard" / "report.json").read_text())
    assert report["second"]["band"]["share"] <= 0.1 and report["second"]["band"]["on"] == "ordinary"
    assert report["cost"]["second"] > 0 and report["cost"]["second_bytes"] > 0
    assert report["requests"]["escalated"]["ordinary"]["n"] == 20
    families = report["requests"]["families"]
    assert all(set(row["first_stage"]) == {"blocked", "refused"} for row in families.values())
    for row in families.values():
        assert row["below_plain"] == pytest.approx(families["plain"]["blocked"]["value"] - row["blocked"]["value"])
    assert "Second stage" in (tmp_path / "guard" / "report.html").read_text()
    assert read_settings(tmp_path / "guard").facts.second.auroc["adapter"] > 0
    assert "points below plain text" in (tmp_path / "guard" / "report.html").read_text()
    guard, low = str(tmp_path / "guard"), report["second"]["band"]["low"]
    assert run_app(["guard", "explain", guard, escalated_text(tmp_path / "guard", small), "--context", "2048"]) == 0
    assert "the second stage decides: log-odds adapter" in capsys.readouterr().out
    calm = min(sentences(40), key=lambda text: explain(tmp_path / "guard", text).score)
    assert explain(tmp_path / "guard", calm).score <= low and explain(tmp_path / "guard", calm).adapter is None
    assert run_app(["guard", "explain", guard, calm, "--context", "2048"]) == 0
    assert "the second stage" not in capsys.readouterr().out


def test_settings_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)could block nothing.*lower --budget, or leave --escalate out"):
        GuardConfig(budget=0.05, escalate=0.05)
    with pytest.raises(ConfigError, match=r"reads a model.*--no-probes"):
        train_and_report(
            load_constitution("default"), GuardConfig(escalate=0.1), tmp_path / "guard", probes=False
        )  # fmt: skip
