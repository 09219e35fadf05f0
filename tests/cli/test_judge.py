"""``trimtab judge`` and ``trimtab route``: without torch, and with files that are not what was meant."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import trimtab
from tests.feedback.test_judge import human, item
from tests.pipeline.test_judge_result import ONE
from trimtab.cli.app import run_app
from trimtab.records import write_records
from trimtab.testing.endpoint import MODEL, FakeEndpoint

PAIRS = [item(f"a good answer {n}", f"another {n}", asked=f"Question {n}?") for n in range(8)]

WITHOUT_TORCH = (
    "import sys\n"
    "for name in ('torch', 'transformers', 'peft', 'safetensors', 'tokenizers'): sys.modules[name] = None\n"
    "from trimtab.cli.app import run_app\n"
    "sys.exit(run_app(sys.argv[1:]))\n"
)


def test_endpoints_are_asked_and_routed_without_torch(tmp_path: Path):
    write_records(tmp_path / "pairs.jsonl", PAIRS)
    environment = os.environ | {"PYTHONPATH": str(Path(trimtab.__file__).parents[1])}
    with FakeEndpoint() as fake:
        judges = {"judges": {"far": {"kind": "endpoint", "url": fake.url, "model": MODEL, "key_env": None}}}
        (tmp_path / "judges.yaml").write_text(json.dumps(judges))
        for command in ("judge pairs.jsonl --out j --judges judges.yaml", "route j"):
            line = [sys.executable, "-c", WITHOUT_TORCH, *command.split()]
            done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment)
            assert done.returncode == 0, done.stderr
    assert (tmp_path / "j" / "labels.jsonl").exists() and len(fake.requests) == 16


@pytest.fixture
def routed(tmp_path: Path) -> Path:
    """A folder of ``trimtab judge`` with a label by a person for each item."""
    write_records(tmp_path / "comparisons.jsonl", PAIRS)
    ai = [human(p, (0, 1), "ai").model_copy(update={"source": "ai", "probability": 0.8}) for p in PAIRS]
    write_records(tmp_path / "judgements.jsonl", ai)
    (tmp_path / "judge.json").write_text(json.dumps(ONE))
    write_records(tmp_path / "people.jsonl", [human(p, (0, 1)) for p in PAIRS])
    assert route(tmp_path, "people.jsonl") == 0
    assert len((tmp_path / "labels.jsonl").read_text().splitlines()) == len(PAIRS)
    return tmp_path


def route(folder: Path, *people: str) -> int:
    return run_app(["route", str(folder), "--audit", "1", *(a for p in people for a in ("--people", str(folder / p)))])


@pytest.mark.parametrize(
    ("people", "words"),
    [
        (["poeple.jsonl"], "poeple.jsonl: there is no such file"),
        (["people.jsonl", "poeple.jsonl"], "poeple.jsonl: there is no such file"),
        (["comparisons.jsonl"], "not a Judgement"),
        (["judgements.jsonl"], "are an AI's"),
        (["strangers.jsonl"], "of no item here; left out: 'no-0', 'no-1', 'no-2', 'no-3', 'no-4' and 2 more"),
        (["people.jsonl", "strangers.jsonl"], "of no item here"),
        (["empty.jsonl"], "holds 8 labels"),
        (["."], "cannot be read"),
        ([], "holds 8 labels"),
    ],
)
def test_a_mistyped_file_never_empties_the_labels(routed: Path, people: list[str], words: str, capsys):
    strangers = [human(PAIRS[0], (0, 1), str(n)).model_copy(update={"item": f"no-{n}"}) for n in range(7)]
    write_records(routed / "strangers.jsonl", strangers)
    (routed / "empty.jsonl").touch()
    before = {f.name: f.read_bytes() for f in routed.iterdir()}
    assert route(routed, *people) != 0
    assert words in capsys.readouterr().err
    assert {f.name: f.read_bytes() for f in routed.iterdir()} == before


def test_unknown_ids_beside_known_ones_are_named(routed: Path, capsys):
    stranger = human(PAIRS[0], (0, 1), "x").model_copy(update={"item": "nobody"})
    write_records(routed / "people.jsonl", [*(human(p, (0, 1)) for p in PAIRS), stranger])
    assert route(routed, "people.jsonl") == 0
    assert "1 judgements are of no item here; left out: 'nobody'" in capsys.readouterr().err
