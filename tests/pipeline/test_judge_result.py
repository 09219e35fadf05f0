"""``judge.json``, ``routing.json``, ``revise.json``: earlier files are read, written unchanged, refused if damaged."""

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import DataError
from trimtab.feedback import report_lines, routing_lines
from trimtab.pipeline.ai_labels import ROUTING, read_routing
from trimtab.pipeline.constitutional import RevisionFacts
from trimtab.pipeline.judge_result import FILE, read_judge_result, write_judge_result
from trimtab.records import to_plain
from trimtab.storage import read_record

SHARE = {"value": 0.75, "low": 0.3, "high": 0.95, "n": 4}
UNKNOWN = {"reason": "no pair has an answer in both orders"}
BIN = {"low": 0.9, "high": 1.0, "confidence": 0.95, "accuracy": 0.75, "n": 4}
RUN = {
    "position_bias": SHARE,
    "flip_rate": UNKNOWN,
    "longer_wins": SHARE,
    "items": 4,
    "unusable": 0,
    "replies": 8,
    "asked": 8,
    "failures": {},
    "cut": {"max_tokens 4": 1},
    "hard": 0,
    "items_that_speak_to_the_judge": 0,
    "tokens": {"in": 800, "out": 8},
    "cost": 0.25,
    "seconds": 1.5,
    "models": ["a-model"],
}
PEOPLE = {
    "pairs": 4,
    "accuracy": SHARE,
    "agreement": SHARE,
    "half_credit": SHARE,
    "lean": SHARE,
    "kappa": {"value": 0.5, "low": -0.2, "high": 1.0, "n": 4},
    "longest": SHARE,
    "confusion": {a: {"first": 1, "tie": 0, "second": 0} for a in ("first", "tie", "second")},
    "calibration": {"as said": {"ece": 0.2, "brier": 0.2, "bins": [BIN]}},
}
JUDGE = {"identity": {"url": "http://host", "options": [1]}, "run": RUN, "people": None, "edit": None}
ONE = {
    "constitution": {"name": "default", "version": "1-abc"},
    "settings": {"mode": "letter", "principles": 1},
    "judges": {"far": JUDGE | {"replies": "far/replies.jsonl"}},
}
TWO = ONE | {
    "judges": {
        "far": JUDGE | {"people": PEOPLE, "edit": {"same": 3, "changed": 1}, "replies": "far/replies.jsonl"},
        "near": JUDGE | {"replies": "../replies/near/replies.jsonl"},
    },
    "ensemble": {"judges": ["far", "near"], "people": PEOPLE},
}
ROUTED = {
    "items": 4,
    "routes": {"ai": 1, "both": 1, "person": 2},
    "coverage": 0.25,
    "thresholds": {"high": 0.9, "low": 0.7, "error": SHARE, "audited": 4},
    "audited": 4,
    "drawn_for_audit": 4,
    "labels_of_people": 5,
    "labels_not_needed": 0,
    "waiting": 0,
    "labels_saved": -1,
    "seconds_per_label": 30.0,
    "hours_saved": -0.01,
    "cost_of_people": 0.0,
    "cost_saved": 0.0,
    "calibration_error": {"as said": 0.1},
    "error_of_ai": SHARE,
    "error_by_route": {"ai": SHARE, "both": SHARE, "person": {"reason": "nothing was audited here"}},
    "error_by_principle": {},
    "speak_to_judge": 0,
    "skipped": 0,
    "cost_of_ai": 0.25,
    "reopened": [200],
}

# As commit da870bb wrote it, whose entries had two fields and whose runs did not count cut replies.
EARLY_JUDGE = """{
  "constitution": {"name": "default", "version": "1-abc"},
  "settings": {"mode": "letter", "principles": 1},
  "judges": {
    "local": {
      "run": {
        "position_bias": {"value": 0.75, "low": 0.3, "high": 0.95, "n": 4},
        "flip_rate": {"value": 0.5, "low": 0.1, "high": 0.9, "n": 4},
        "longer_wins": {"reason": "no pair of different length has a winner"},
        "items": 4,
        "unusable": 1,
        "replies": 8,
        "asked": 8,
        "failures": {"unclear": 1},
        "hard": 2,
        "items_that_speak_to_the_judge": 0,
        "tokens": {"in": 800, "out": 8},
        "cost": 0.25,
        "seconds": 1.5,
        "models": ["a-model"]
      },
      "people": null
    }
  }
}"""

# As commit b7d11a0 wrote it.
EARLY_ROUTING = """{
  "items": 4,
  "routes": {"ai": 1, "both": 1, "person": 2},
  "coverage": 0.25,
  "thresholds": {"high": 0.9, "low": 0.7, "error": {"value": 0.05, "low": 0.01, "high": 0.2, "n": 4}, "audited": 4},
  "audited": 4,
  "drawn_for_audit": 4,
  "labels_of_people": 3,
  "waiting": 0,
  "labels_saved": 1,
  "seconds_per_label": 30.0,
  "hours_saved": 0.5,
  "cost_of_people": 0.0,
  "cost_saved": 0.0,
  "error_of_ai": {"value": 0.05, "low": 0.01, "high": 0.2, "n": 4},
  "error_by_route": {"ai": {"value": 0.05, "low": 0.01, "high": 0.2, "n": 4}, "both": {"reason": "nothing"}},
  "error_by_principle": {},
  "reopened": []
}"""


def written(folder: Path, name: str, value: Any) -> Path:
    (folder / name).write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize("value", [ONE, TWO], ids=["one", "two"])
def test_judges_of_a_finished_folder_are_read_and_written_unchanged(value: dict[str, Any], tmp_path: Path):
    result = read_judge_result(written(tmp_path, FILE, value))
    far = result.judges["far"]
    assert far.run.tokens == {"in": 800, "out": 8} and far.run.position_bias.value == 0.75
    assert (result.ensemble is None) == (value is ONE) and (far.people is None) == (value is ONE)
    if far.people is not None and far.people.calibration is not None:
        assert far.people.calibration["as said"].bins[0].confidence == 0.95
    write_judge_result(tmp_path, result)
    assert (tmp_path / FILE).read_text() == json.dumps(value, indent=2) + "\n"


def test_routing_of_a_finished_folder_is_read_and_written_unchanged(tmp_path: Path):
    report = read_routing(written(tmp_path, ROUTING, ROUTED))
    assert report.thresholds.high == 0.9 and report.routes["person"] == 2 and report.reopened == (200,)
    assert json.dumps(to_plain(report)) == json.dumps(ROUTED)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"judges": {}}, r"no valid JudgeResult: constitution: Field required"),
        (
            ONE | {"judges": {"far": JUDGE | {"run": RUN | {"cost": "unknown"}}}},
            r"judges\.far\.run\.cost: .*, got 'unknown'",
        ),
        (ONE | {"judges": {"far": JUDGE | {"run": {}}}}, r"judges\.far\.run\.position_bias: Field required"),
    ],
)
def test_a_malformed_file_of_judges_is_refused(value: Any, message: str, tmp_path: Path):
    with pytest.raises(DataError, match=message) as error:
        read_judge_result(written(tmp_path, FILE, value))
    assert "delete it and run again what writes it" in str(error.value)


def test_a_malformed_routing_file_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"routes\.machine.\[key\]: Input should be 'ai', 'both' or 'person'"):
        read_routing(written(tmp_path, ROUTING, ROUTED | {"routes": {"machine": 4}}))


def test_the_judges_of_an_early_version_are_read_and_written_again(tmp_path: Path):
    result = read_judge_result(written(tmp_path, FILE, json.loads(EARLY_JUDGE)))
    entry = result.judges["local"]
    assert (entry.identity, entry.edit, entry.replies, entry.run.cut) == (None, None, "", None)
    lines = report_lines(entry.run)
    assert lines[0].startswith("4 items judged, 1 without an answer") and not any("were cut" in line for line in lines)
    write_judge_result(tmp_path, result)
    assert read_judge_result(tmp_path) == result


def test_the_routing_of_an_early_version_is_read(tmp_path: Path):
    report = read_routing(written(tmp_path, ROUTING, json.loads(EARLY_ROUTING)))
    assert (report.routes["person"], report.labels_saved, report.hours_saved) == (2, 1, 0.5)
    absent = (report.labels_not_needed, report.calibration_error, report.speak_to_judge, report.skipped)
    assert (*absent, report.cost_of_ai) == (None,) * 5
    text = "\n".join(routing_lines(report))
    assert "3 labels by people, 1 fewer" in text and "calibration" not in text and "None" not in text


@pytest.mark.parametrize("text", ["{", json.dumps(ONE | {"judges": 1}), None], ids=["damaged", "wrong", "missing"])
def test_in_a_run_the_whole_stage_is_to_be_deleted(text: str | None, tmp_path: Path):
    stage = tmp_path / "stages" / "label"
    (stage / "judge").mkdir(parents=True)
    (stage / "status.json").write_text("{}")
    if text is not None:
        (stage / "judge" / FILE).write_text(text)
    with pytest.raises(DataError) as error:
        read_judge_result(stage / "judge")
    message = str(error.value)
    assert message.startswith(str(stage / "judge" / FILE))
    assert message.endswith(f"delete the folder {stage} and run again; what judges have answered is not asked again")


REVISED = {
    "constitution": {"name": "default", "version": "1-abc"},
    "counts": {"kept": 3, "no violation": 1, "left_out": 0},
    "too_long": 0,
    "unrendered": 0,
    "principles": {"kind": {"rounds": 4, "fired": 3, "outcomes": {"kept": 3, "no violation": 1}}},
    "judge": {"position_bias": SHARE, "flip_rate": UNKNOWN, "longer_wins": SHARE},
}


def test_revisions_of_earlier_runs_are_read_and_written_unchanged(tmp_path: Path):
    file = tmp_path / "revise.json"
    file.write_text(json.dumps(REVISED))
    assert json.dumps(to_plain(read_record(file, RevisionFacts))) == json.dumps(REVISED)
    file.write_text(json.dumps({name: value for name, value in REVISED.items() if name != "unrendered"}))
    assert read_record(file, RevisionFacts).unrendered == 0
    file.write_text(json.dumps(REVISED | {"too_short": 1}))
    with pytest.raises(DataError, match="no valid RevisionFacts: too_short: Extra inputs are not permitted, got '1'"):
        read_record(file, RevisionFacts)
