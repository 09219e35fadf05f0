"""The capability check in a run: measured once per model, off by a setting, without a trace in training."""

import json
from pathlib import Path

import pytest
import torch

from trimtab.errors import DataError, Interrupted
from trimtab.evals import Capability, capability_report, load_capability
from trimtab.evals.report import render
from trimtab.models import Role
from trimtab.pipeline import capability
from trimtab.pipeline.capability import measure_capability
from trimtab.records import Demonstration
from trimtab.testing import chat_messages, tiny_backbone, toy_recipe

from ..evals.test_report import Page, bare
from .test_run import ctrl_c, go, states, weights

SMALL = [
    {"question": "sky?", "right": "blue.", "wrong": "red."},
    {"question": "sun?", "right": "warm.", "wrong": "cold."},
    {"question": "tea?", "keywords": ["tea", "water"]},
    {"text": "The sun is warm and the lake is blue."},
    {"text": "A cat and a dog sleep in the garden."},
]
QUICK = ("align.steps=2", "sft.epochs=1", "reward.epochs=1")


def small_set(folder: Path) -> str:
    path = folder / "small.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in SMALL))
    return str(path)


def stored(recipe: Path, stage: str) -> dict:
    return json.loads((recipe.parent / "runs" / "toy" / "stages" / stage / "capability.json").read_text())


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("checked")
    recipe = toy_recipe(folder, capability={"file": small_set(folder)})
    return recipe, go(recipe, *QUICK)


def test_a_run_measures_every_model_once_and_shows_it(checked):
    recipe, ui = checked
    sft, align = stored(recipe, "sft"), stored(recipe, "align")
    assert align["before"] == sft["after"] != sft["before"]
    assert {k: len(v) for k, v in sft["after"].items()} == {
        "margins": 2, "texts": 2, "demonstrations": 4, "answers": 1, "reasons": 0
    }  # fmt: skip
    assert sum("capability: right answers" in line for line in ui.lines) == 2
    page = (recipe.parent / "runs" / "toy" / "report.html").read_text()
    assert "What alignment cost" in page and "log-odds of right answers" in page
    report = json.loads((recipe.parent / "runs" / "toy" / "report.json").read_text())
    assert report["capability"]["models"] == ["Pretrained", "SFT", "PPO"]


def test_training_gives_the_same_bits_with_the_check_and_without(checked, tmp_path):
    recipe = toy_recipe(tmp_path)
    go(recipe, *QUICK)
    assert weights(recipe) == weights(checked[0])
    assert not list((tmp_path / "runs").rglob("capability.json"))
    report = json.loads((tmp_path / "runs" / "toy" / "report.json").read_text())
    assert report["capability"] is None and "off in this run" in report["missing"]["capability"]


def test_another_set_is_another_fingerprint(checked):
    recipe = checked[0]
    assert states(recipe, *QUICK)["sft"] == "done"
    assert states(recipe, *QUICK, "capability=null")["sft"] == "run"
    assert states(recipe, *QUICK, "capability.file=null")["align"] == "run"


def test_interrupted_in_training_it_does_not_measure_the_start_again(checked, tmp_path, monkeypatch):
    recipe = toy_recipe(tmp_path, capability={"file": small_set(tmp_path)})
    with monkeypatch.context() as patch:
        ctrl_c(patch, lambda folder, metrics: folder.name == "sft" and metrics["step"] == 2)
        with pytest.raises(Interrupted):
            go(recipe, *QUICK, until="sft")
    measured = []
    real = capability.measure_capability
    monkeypatch.setattr(capability, "measure_capability", lambda *a: (measured.append(1), real(*a))[1])
    go(recipe, *QUICK, until="sft")
    assert len(measured) == 1
    assert stored(recipe, "sft") == stored(checked[0], "sft")


def test_without_sft_the_pretrained_model_is_measured_before_alignment(tmp_path):
    rows = [{"prompt": f"sun {i}", "chosen": "warm", "rejected": "cold cold"} for i in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = toy_recipe(
        tmp_path, capability={"file": small_set(tmp_path)}, data={"preferences": "pairs.jsonl"}, gold=None,
        align={"method": "dpo", "adapter": {"kind": "full"}}, **dict.fromkeys(("sft", "sample", "label", "reward")),
    )  # fmt: skip
    ui = go(recipe)
    assert stored(recipe, "align")["before"]["demonstrations"] == {}
    assert any("held-out demonstrations: no demonstrations were held out" in line for line in ui.lines)
    report = json.loads((tmp_path / "runs" / "toy" / "report.json").read_text())
    assert report["capability"]["models"] == ["Pretrained", "DPO"]


def test_a_malformed_set_is_refused_before_anything_is_trained(tmp_path):
    (tmp_path / "bad.jsonl").write_text("{}\n")
    recipe = toy_recipe(tmp_path, capability={"file": "bad.jsonl"})  # beside the recipe, like data
    with pytest.raises(DataError, match=r"bad.jsonl: 1 rows of the capability set are malformed"):
        go(recipe)
    assert not (tmp_path / "runs" / "toy" / "stages").exists()


def test_measured_by_hand(tmp_path):
    role = Role(tiny_backbone())
    chat = role.backbone.chat
    rows = load_capability(Path(small_set(tmp_path)))
    result = measure_capability(role, rows, [Demonstration(id="d", messages=chat_messages("sing", "blue bird"))])

    def logprob(tokens: list[int], start: int) -> float:
        with torch.no_grad():
            table = role.backbone.model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        return sum(float(table[i - 1, tokens[i]]) for i in range(start, len(tokens)))

    question = chat_messages("sky?", "")[:1]
    both = [chat.answer(question, text) for text in ("blue.", "red.")]
    right, wrong = (logprob(e.tokens, e.response_mask.index(True)) for e in both)
    assert result.margins["sky?"] == pytest.approx(right - wrong, abs=1e-4)
    tokens = chat.tokenizer.encode(rows.texts[0])
    assert result.texts[rows.texts[0]] == pytest.approx(-logprob(tokens, 1) / (len(tokens) - 1), abs=1e-4)
    assert set(result.demonstrations) == {"d"} and set(result.answers) == {"tea?"}


def test_what_does_not_fit_or_is_not_finite_is_said(tmp_path):
    backbone = tiny_backbone()
    backbone.chat.context = 24
    result = measure_capability(Role(backbone), load_capability(Path(small_set(tmp_path))))
    assert result.answers == {} and "does not fit model.context 24" in result.reasons["answers"]
    with torch.no_grad():
        backbone.model.get_output_embeddings().weight.fill_(float("nan"))
    broken = measure_capability(Role(backbone), load_capability(Path(small_set(tmp_path))))
    assert broken.texts == {} and "not finite" in broken.reasons["texts"]


def test_the_page_shows_the_alarm(tmp_path):
    values = {"texts": {}, "demonstrations": {}, "answers": {}, "reasons": {"texts": "<b>none</b>"}}
    before = Capability(margins={f"q{i}": 4.0 + i % 2 for i in range(40)}, **values)
    after = Capability(margins={f"q{i}": 2.0 + i % 2 for i in range(40)}, **values)
    cost, fired = capability_report({"Base": before, "SFT": after})
    page = Page(render(bare(capability=cost, alarms=fired)))
    assert "alarm: SFT" in page.text and "not measured" in page.text and "<b>none</b>" in page.text
    assert "SFT is worse than Base: log-odds of right answers" in page.text
