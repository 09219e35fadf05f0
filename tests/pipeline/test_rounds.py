"""Rounds of a recipe: what each starts from and learns from, the lineage of a judgement, and a withdrawal."""

import json
import shutil
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from transformers import AutoModelForCausalLM

from trimtab.cli.app import run_app
from trimtab.errors import ConfigError, DataError, Interrupted, StorageError
from trimtab.feedback import AggregateConfig, aggregate
from trimtab.models import load_tensors
from trimtab.pipeline.config import load_recipe
from trimtab.pipeline.context import Context
from trimtab.pipeline.export import export_model
from trimtab.pipeline.learned import LEARNED, Learned
from trimtab.pipeline.lineage import lines, trace
from trimtab.pipeline.plan import make_plan
from trimtab.pipeline.round_rows import round_rows
from trimtab.pipeline.rounds import _is_round_finished, next_round
from trimtab.pipeline.run import plan_rounds
from trimtab.pipeline.talk import open_model
from trimtab.pipeline.ui import Silent
from trimtab.pipeline.withdraw import _new_folder, withdraw
from trimtab.pipeline.withdraw import lines as withdrawal_lines
from trimtab.records import Comparison, Judgement, Preference, Rollout, read_records
from trimtab.storage import RunFolder
from trimtab.storage.watched import WatchedRun

from .small_rounds import ADAPTER, Remembering, go, small_recipe
from .test_capability import small_set
from .test_run import ctrl_c
from .test_votes import Page

LATER = ["sample", "label", "preferences", "reward", "align", "evaluate", "report"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two rounds."""
    folder = tmp_path_factory.mktemp("rounds")
    file = small_recipe(folder, rounds=2, capability={"file": small_set(folder)})
    go(file)
    return file


@pytest.fixture
def run(recipe: Path) -> RunFolder:
    return RunFolder(recipe.parent / "runs" / "toy", create=False)


def evaluation(run: RunFolder) -> dict:
    return json.loads((run.stage("evaluate") / "evaluation.json").read_text())


def rates(run: RunFolder, model: str, against: str) -> dict[str, tuple]:
    rows = evaluation(run)["win_rates"]
    return {r["judge"]: (r["rate"], r["n"]) for r in rows if (r["model"], r["against"]) == (model, against)}


def test_a_round_starts_from_the_policy_of_the_one_before(recipe: Path, run: RunFolder):
    second = run.round(2)
    assert sorted(p.name for p in (second.path / "stages").iterdir()) == sorted(LATER)
    assert evaluation(run)["models"] == ["base", "sft", "policy"]
    assert evaluation(second)["models"] == ["base", "start", "policy"]
    # The same held-out prompts and chances: what round 1 reached is what round 2 starts from.
    assert rates(second, "start", "base")["gold"] == rates(run, "policy", "base")["gold"]
    for model, other in (("base", "base"), ("policy", "start")):
        first = read_records(run.stage("evaluate") / f"answers-{model}.jsonl", Rollout)
        again = read_records(second.stage("evaluate") / f"answers-{other}.jsonl", Rollout)
        assert [r.text for r in first] == [r.text for r in again], model
    context = Context(config=load_recipe(recipe), recipe=recipe, run=second, ui=Silent())
    start = context.trunk()
    policy, adapter = open_model(str(run.path), which="round-1", runs=recipe.parent / "runs")
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = policy.head(policy.hidden(tokens, adapter=adapter))
        assert torch.allclose(start.head(start.hidden(tokens, adapter=None)), expected, atol=1e-5)
    newest, adapter = open_model(str(run.path), which="policy", runs=recipe.parent / "runs")
    weights = load_tensors(second.stage("align") / "weights.safetensors")
    held = newest.adapter_parameters(str(adapter))
    assert held and all(
        torch.equal(p.detach(), weights[name.replace(f".{adapter}.", ".adapter.")]) for name, p in held.items()
    )
    answers = [read_records(r.stage("sample") / "comparisons.jsonl", Comparison) for r in (run, second)]
    assert {i.prompt.id for i in answers[0]} & {i.prompt.id for i in answers[1]} and answers[0] != answers[1]


def test_the_reward_model_learns_from_all_rounds(run: RunFolder):
    first = read_records(run.stage("preferences") / "preferences.jsonl", Preference)
    second = read_records(run.round(2).stage("preferences") / "preferences.jsonl", Preference)
    learned = read_records(run.round(2).stage("reward") / LEARNED, Learned)
    assert Counter(x.round for x in learned) == {1: len(first), 2: len(second)}
    assert {x.preference for x in learned} == {p.id for p in (*first, *second)}
    held = {x.preference for x in read_records(run.stage("reward") / LEARNED, Learned) if x.part == "held_out"}
    assert held and all(x.part == "train" or not x.steps for x in learned)
    counts = Counter(len(x.steps) for x in learned if x.part == "train")
    assert set(counts) == {2}, "two epochs see each preference twice"


def test_finished_rounds_are_skipped_and_a_change_runs_what_follows(recipe: Path, run: RunFolder):
    def waiting(*overrides: str) -> list[list[str]]:
        config = load_recipe(recipe, list(overrides))
        return [[s.stage.name for s in r.stages if s.state != "done"] for r in plan_rounds(config, recipe, run)]

    assert waiting() == [[], []]
    assert waiting("rounds=3") == [[], [], LATER]
    assert waiting("reward.centring=0.1") == [["reward", "align", "evaluate", "report"], LATER]
    assert waiting("evaluate.examples=5") == [["evaluate", "report"]] * 2
    page = (run.path / "report.html").read_bytes()
    _, ui = go(recipe)
    assert sum("done before, skipped" in line for line in ui.lines) == len(ui.lines) == 15
    _, ui = go(recipe, "rounds=1")
    assert sum("done before, skipped" in line for line in ui.lines) == len(ui.lines) == 8
    assert (run.path / "report.html").read_bytes() == page, "the newest round's page stays"


def test_the_page_has_a_row_for_each_round(run: RunFolder):
    report = json.loads((run.path / "report.json").read_text())
    assert [row["round"] for row in report["rounds"]] == [1, 2] and report["after"] == "Round 2"
    for row, folder, start in zip(report["rounds"], (run, run.round(2)), ("sft", "start"), strict=True):
        assert (row["over_pretrained"]["value"], row["over_pretrained"]["n"]) == rates(folder, "policy", "base")["gold"]
        assert (row["over_before"]["value"], row["over_before"]["n"]) == rates(folder, "policy", start)["gold"]
        assert row["labels"] == len(read_records(folder.stage("label") / "judgements.jsonl", Judgement))
        assert row["kl"]["value"] == evaluation(folder)["kl"]["value"] and set(row["means"]) == {"gold", "proxy"}
    page = (run.path / "report.html").read_text()
    assert report["capability"]["models"] == ["Pretrained", "Round 1", "Round 2"]
    checks = [json.loads((r.stage("align") / "capability.json").read_text()) for r in (run, run.round(2))]
    assert checks[1]["before"] == checks[0]["after"], "measured once"
    assert '<section id="rounds">' in page and "rounds/2/stages/evaluate/evaluation.json" in page
    first = json.loads((run.stage("report") / "report.json").read_text())
    assert first["rounds"] == [] and first["after"] == "RLOO"


def test_a_round_that_was_stopped_continues_to_the_same_weights(
    recipe: Path, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copy = Path(shutil.copytree(recipe.parent, tmp_path / "copy", ignore=shutil.ignore_patterns("model")))
    second = RunFolder(copy / "runs" / "toy").round(2)
    for stage in ("align", "evaluate", "report"):
        shutil.rmtree(second.stage(stage))
    assert second.newest().number == 1, "round 2 has no policy now"
    with monkeypatch.context() as patch:
        ctrl_c(patch, lambda folder, metrics: folder.name == "align" and metrics["step"] == 1)
        with pytest.raises(Interrupted, match=r"stopped after step 1 of 2.*the same command continues"):
            go(copy / "recipe.yaml", until="align")
    _, ui = go(copy / "recipe.yaml", until="align")
    assert sum("skipped" in line for line in ui.lines) == 12 and any("align: continuing" in line for line in ui.lines)
    file = "weights.safetensors"
    assert (second.stage("align") / file).read_bytes() == (run.round(2).stage("align") / file).read_bytes()
    # A round that was made from another round 1 is not served, and no round starts from it.
    status = json.loads((run.stage("align") / "status.json").read_text())
    (second.first.stage("align") / "status.json").write_text(json.dumps(status | {"fingerprint": "f" * 64}))
    assert second.newest().number == 1
    with pytest.raises(ConfigError, match="round 2 was made from another round 1 than the one that is there now"):
        next_round(second.first.path, tmp_path, ui=Silent())


def test_the_newest_rounds_policy_is_exported(run: RunFolder, tmp_path: Path):
    policy, adapter = open_model(str(run.path), which="policy", runs=tmp_path)
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = policy.head(policy.hidden(tokens, adapter=adapter))
        merged = AutoModelForCausalLM.from_pretrained(export_model(run.path, tmp_path / "merged"))
        assert torch.allclose(merged(tokens).logits, expected, atol=1e-4)
        export_model(run.path, tmp_path / "adapter", adapter=True)
        joined = load_tensors(tmp_path / "adapter" / "adapter_model.safetensors")
        base = policy.model.state_dict()
        name = next(name for name in joined if name.endswith("q_proj.lora_A.weight"))
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        delta = joined[name.replace("lora_A", "lora_B")] @ joined[name]
        layer = policy.model.get_submodule(module)
        started = base[f"{module}.base_layer.weight"]  # with SFT and round 1
        own = layer.get_delta_weight(adapter)
        pretrained = load_tensors(Path(load_recipe(run.path / "config.yaml").model.name) / "model.safetensors")
        assert torch.allclose(pretrained[f"{module}.weight"] + delta, started + own, atol=1e-5)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 6, "SFT and two rounds"
    export_model(run.round(2).path, tmp_path / "sft", stage="sft")
    assert WatchedRun(run.round(2).path).name == "toy, round 2" and not WatchedRun(run.round(2).path).is_running()
    with pytest.raises(ConfigError, match="is the recipe of round 2"):
        go(run.round(2).path / "config.yaml")


def test_plan_counts_the_preferences_of_all_rounds(recipe: Path):
    rows = make_plan(load_recipe(recipe), recipe, recipe.parent / "runs")["stages"]
    assert [r["stage"] for r in rows if r["round"] == 2] == LATER
    first, second = (r["what"] for r in rows if r["stage"] == "reward")
    assert first.startswith("12 rankings") and second.startswith("24 rankings of 2 from all rounds")
    config = load_recipe(recipe, ["label.without=[simulated-01]"])
    rows = make_plan(config, recipe, recipe.parent / "runs")["stages"]
    assert next(r for r in rows if r["stage"] == "preferences")["what"] == "16 preferences, without simulated-01"
    assert [r["stage"] for r in rows if r["round"] == 1 and r["state"] == "done"] == ["sft", "sample", "label"]


@pytest.mark.parametrize(
    ("sections", "missing"), [({"label": None}, "no label"), ({"align": None, "evaluate": None}, "no align")]
)
def test_rounds_need_labels_and_alignment(tmp_path: Path, sections: dict, missing: str):
    recipe = small_recipe(tmp_path, rounds=2, **sections)
    with pytest.raises(ConfigError, match=rf"rounds is 2.*the recipe has {missing}"):
        load_recipe(recipe)


def test_a_next_round_needs_a_finished_run_and_votes(recipe: Path, run: RunFolder, tmp_path: Path):
    with pytest.raises(DataError, match="no run"):
        next_round(tmp_path, tmp_path, ui=Silent())
    with pytest.raises(DataError, match="is round 2 of a run; give the run's folder"):
        next_round(run.round(2).path, tmp_path, ui=Silent())
    with pytest.raises(ConfigError, match="nothing says where the votes are"):
        next_round(run.path, None, ui=Silent())
    with run.lock(), pytest.raises(StorageError, match="another process"):
        next_round(run.path, tmp_path, ui=Silent())
    with pytest.raises(DataError, match=r"wrong: holds neither labels\.db nor judgements\.jsonl"):
        next_round(run.path, tmp_path / "wrong", ui=Silent())
    assert not run.round(3).path.exists()
    (tmp_path / "config.yaml").write_text((run.path / "config.yaml").read_text())
    with pytest.raises(ConfigError, match="round 1 has no policy, so no round can start from it"):
        next_round(tmp_path, tmp_path, ui=Silent())


def test_votes_make_the_next_round_and_are_used_once(recipe: Path, tmp_path: Path):
    copy = Path(shutil.copytree(recipe.parent, tmp_path / "copy", ignore=shutil.ignore_patterns("model")))
    run, page = RunFolder(copy / "runs" / "toy"), Page(tmp_path / "votes")
    person, _ = page.visitor()
    for number in range(8):
        page.vote(person, [f"red bird {number}", f"a {number}"], choice="right" if number % 4 else "left")
    made = next_round(run.path, page.folder, overrides=["align.steps=1"], ui=Silent())
    votes = read_records(made.stage("label") / "judgements.jsonl", Judgement)
    assert made.number == run.newest().number == 3 and len(votes) == 8
    learned = read_records(made.stage("reward") / LEARNED, Learned)
    assert set(Counter(x.round for x in learned)) == {1, 2, 3}
    rows = json.loads((run.path / "report.json").read_text())["rounds"]
    assert [(row["round"], row["labels"], row["label_source"]) for row in rows][2] == (3, 8, "simulated")
    used = next(v for x in learned if x.round == 3 and x.part == "train" for v in votes if v.id in x.judgements)
    followed = trace(run, used.id)
    assert followed.judgements[0].source == "simulated" and [p.round for p in followed.policies] == [3]
    with pytest.raises(ConfigError, match=r"rounds/3 was made by `trimtab round` from votes.*Set rounds: 2"):
        go(copy / "recipe.yaml", "rounds=3")
    page.store.database.close()


# Lineage ------------------------------------------------------------------------------------


def test_a_judgement_leads_to_its_pair_steps_policies_and_figures(run: RunFolder):
    pair = next(
        x for x in read_records(run.stage("reward") / LEARNED, Learned) if x.part == "train" and len(x.judgements) == 2
    )
    name = pair.judgements[0]
    result = trace(run, name)
    assert result.kind == "judgement" and result.judgements[0].id == name and result.pair is not None
    assert result.pair.id == pair.preference and pair.judgements == result.pair.judgements
    assert [m.round for m in result.reward_models] == [1, 2], "the next round's reward model learned from it too"
    assert result.reward_models[0].steps == pair.steps
    assert [(p.round, p.steps) for p in result.policies] == [(1, (1, 2)), (2, (1, 2))]
    expected = {rate for r in (run, run.round(2)) for rate, _ in rates(r, "policy", "base").values()}
    assert expected <= {f.value for f in result.figures if f.figure == "win_rate"}
    text = "\n".join(lines(result))
    assert name in text and pair.preference in text and "policy of round 2: through the reward model" in text
    later = read_records(run.round(2).stage("label") / "judgements.jsonl", Judgement)[0]
    assert {m.round for m in trace(run, later.id).reward_models} <= {2}


def test_a_pair_a_checkpoint_and_a_figure_lead_back(run: RunFolder, capsys):
    preference = read_records(run.stage("preferences") / "preferences.jsonl", Preference)[0]
    assert tuple(j.id for j in trace(run, preference.id).judgements) == preference.judgements
    file = "preferences.jsonl"
    made = {r.number: read_records(r.stage("preferences") / file, Preference) for r in (run, run.round(2))}
    used = {number: {j for p in preferences for j in p.judgements} for number, preferences in made.items()}
    status = run.round(2).status("align")
    assert status is not None and status.outputs is not None
    for name in (status.outputs["weights.safetensors"][:12], "win_rate"):
        result = trace(run, name)
        assert {j.id for j in result.judgements} == used[1] | used[2], name
        assert result.pairs.keys() == {1, 2} and [p.round for p in result.policies] == [1, 2]
    assert {j.id for j in trace(run, "kl", round=1).judgements} == used[1]
    with pytest.raises(DataError, match=r"'no-such-id': not a judgement, pair or checkpoint"):
        trace(run, "no-such-id")
    with pytest.raises(DataError, match="--round 3: this run has rounds 1 to 2"):
        trace(run, "kl", round=3)
    assert run_app(["lineage", str(run.path), preference.id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pair"]["id"] == preference.id
    assert run_app(["lineage", str(run.path), "reward_accuracy"]) == 0
    assert "judgements of round 1 by simulated-0" in capsys.readouterr().out


# Withdrawal ---------------------------------------------------------------------------------


def test_a_withdrawal_makes_a_new_run_without_the_judgements(recipe: Path, run: RunFolder, tmp_path: Path, capsys):
    gone, before = "simulated-01", {f: f.stat().st_mtime_ns for f in run.path.rglob("*") if f.name != ".lock"}
    made, changes = withdraw(run.path, [gone], tmp_path / "toy-without", ui=Silent())
    assert {f: f.stat().st_mtime_ns for f in run.path.rglob("*") if f.name != ".lock"} == before
    items = read_records(run.stage("sample") / "comparisons.jsonl", Comparison)
    judgements = read_records(run.stage("label") / "judgements.jsonl", Judgement)
    rest = [j for j in judgements if j.annotator != gone]
    assert read_records(made.stage("label") / "judgements.jsonl", Judgement) == rest
    expected = {p.id: p for p in aggregate(items, rest, config=AggregateConfig()).preferences}
    old = {p.id: p for p in aggregate(items, judgements, config=AggregateConfig()).preferences}
    assert {p.id: p for p in read_records(made.stage("preferences") / "preferences.jsonl", Preference)} == expected
    [first, second] = changes
    assert first.judgements == len(judgements) - len(rest) > 0 and set(first.lost) == old.keys() - expected.keys()
    assert (first.pairs_before, first.pairs_after) == (len(old), len(expected))
    flips = {
        uid for uid in old.keys() & expected.keys()
        if (old[uid].ranks[0] - old[uid].ranks[1]) * (expected[uid].ranks[0] - expected[uid].ranks[1]) < 0
    }  # fmt: skip
    assert set(first.flipped) == flips and first.changed > 0
    assert first.again == ["reward", "align", "evaluate", "report"] and not second.copied and second.again == LATER
    states = plan_rounds(load_recipe(made.path / "config.yaml"), recipe, made)[0].stages
    assert [s.stage.name for s in states if s.state == "done"] == ["sft", "sample", "label", "preferences"]
    text = "\n".join(withdrawal_lines(made, changes))
    assert "judgements taken out" in text and "the old run stays as it is" in text
    assert json.loads((made.path / "withdrawn.json").read_text())["annotators"] == [gone]
    with pytest.raises(ConfigError, match="exists; name a new folder"):
        withdraw(run.path, [gone], made.path, ui=Silent())
    with pytest.raises(DataError, match=r"no judgement by 'nobody' is in this run; its annotators are simulated-0"):
        withdraw(run.path, ["nobody"], tmp_path / "x", ui=Silent())
    left_out = trace(run, next(j.id for j in judgements if j.annotator == gone))
    assert left_out.judgements[0].annotator == gone, "the old run still says who was in it"
    out = str(tmp_path / "again")
    assert run_app(["data", "withdraw", str(run.path), "--annotator", gone, "--out", out, "--retrain", "--json"]) == 0
    captured = capsys.readouterr().out
    told = json.loads(captured[captured.index("{\n") :])
    assert set(told["rounds"][0]["accuracy"]) == {"before", "after"}


class Votes(Page):
    """A chat page on which one person votes several times."""

    def compare(self, person: int, count: int) -> None:
        for number in range(count):
            self.vote(person, [f"red bird {self.count}", f"a {self.count}"], choice="right" if number % 4 else "left")


def test_a_withdrawal_holds_in_all_later_rounds(recipe: Path, run: RunFolder, tmp_path: Path):
    """Round 1 learned from a file of preferences alone, rounds 2 and 3 from votes."""
    (tmp_path / "recipe").mkdir()
    file, known = tmp_path / "recipe" / "pairs.jsonl", run.stage("preferences") / "preferences.jsonl"
    pairs = [p for p in read_records(known, Preference) if p.ranks[0] != p.ranks[1]]
    texts = [[p.completions[p.ranks.index(rank)].text for rank in (0, 1)] for p in pairs]
    rows = [{"prompt": p.prompt.text, "chosen": a, "rejected": b} for p, (a, b) in zip(pairs, texts, strict=True)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"preferences": str(file), "prompts": None, "demonstrations": None}
    align = {"method": "dpo", "adapter": ADAPTER, "epochs": 1, "batch": 8, "holdout": 0.25, "optimizer": {"lr": 1e-3}}
    sections = {"sample": None, "label": None, "reward": None, "evaluate": None, "align": align, "data": data}
    first, _ = go(small_recipe(tmp_path / "recipe", **sections))
    page = Votes(tmp_path / "votes")
    (gone, _), (stays, _) = page.visitor(), page.visitor()
    for number in (2, 3):
        page.compare(gone, 4)
        page.compare(stays, 8)
        settings = ["label.votes.per_person=8"]
        assert next_round(first.path, page.folder, overrides=settings, ui=Silent()).number == number
    learned = {x.part: x for x in read_records(first.round(2).stage("align") / LEARNED, Learned)}
    followed = trace(first, learned["train"].preference).policies
    assert [(p.round, p.part) for p in followed] == [(2, "train"), (3, "through the policy it starts from")]
    followed = trace(first, learned["held_out"].preference).policies
    assert [(p.round, p.part) for p in followed] == [(2, "held_out")], "it changed no policy"
    name = read_records(first.round(2).stage("label") / "judgements.jsonl", Judgement)[0].annotator

    ui = Remembering()
    made, changes = withdraw(first.path, [name], ui=ui)
    assert [(c.judgements, c.again) for c in changes] == [(0, [])] + [(4, ["align"])] * 2
    for number in (2, 3):
        label = made.round(number).stage("label")
        records = read_records(label / "judgements.jsonl", Judgement)
        status, told = made.round(number).status("label"), json.loads((label / "votes.json").read_text())
        assert len(records) == 8 and name not in {j.annotator for j in records}
        assert status is not None and status.counts is not None
        assert [status.counts[k] for k in ("items", "judgements", "people")] == [8, 8, 1]
        assert sum(pair["n"] for pair in told["pairs"]) == 8, "measured by the votes that are left"
    page.compare(gone, 4)
    page.compare(stays, 4)
    for number, votes in ((2, 8), (3, 8), (4, 4)):
        later = next_round(made.path, None, ui=ui)
        records = read_records(later.stage("label") / "judgements.jsonl", Judgement)
        assert (later.number, len(records)) == (number, votes) and name not in {j.annotator for j in records}
    status, label = later.status("label"), load_recipe(later.path / "config.yaml").label
    assert status is not None and status.counts is not None and label is not None and label.votes is not None
    assert status.counts["votes dropped: of annotators in label.without"] == 12
    assert label.without == (name,) and label.votes.per_person == 8
    page.store.database.close()


def test_a_withdrawal_that_was_stopped_continues(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    gone, out = ["simulated-01", "simulated-02"], tmp_path / "without"
    with monkeypatch.context() as patch:
        patch.setattr("trimtab.pipeline.withdraw.run_round", Mock(side_effect=Interrupted("stopped")))
        with pytest.raises(Interrupted):
            withdraw(run.path, gone, out, ui=Silent())
    with pytest.raises(ConfigError, match="exists; name a new folder"):
        withdraw(run.path, gone[:1], out, ui=Silent())
    (tmp_path / ".without.123.tmp").mkdir()  # left by a process that was killed while it copied
    made, changes = withdraw(run.path, gone, out, ui=Silent())
    assert not list(tmp_path.glob(".*"))
    assert made.status("preferences") is not None and changes[0].pairs_after > 0
    assert _new_folder(run.path, ["A/B", "c" * 300]).name == "toy-without-A_B-" + "c" * 96


def test_a_round_without_its_evaluation_or_with_an_old_one_is_not_finished(run: RunFolder, tmp_path: Path):
    later = RunFolder(Path(shutil.copytree(run.path, tmp_path / "toy"))).round(2)
    assert _is_round_finished(later)
    later.round(3).path.mkdir()  # the process was killed before it wrote the recipe
    assert [r.number for r in later.rounds()] == [1, 2]
    file = later.stage("evaluate") / "status.json"
    status = json.loads(file.read_text())
    file.write_text(json.dumps(status | {"needs": status["needs"] | {"align": "f" * 64}}))
    assert not _is_round_finished(later), "its evaluation is of an earlier policy"
    assert [row.round for row in round_rows(later)] == [1]
