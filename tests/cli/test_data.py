"""``trimtab data``: what it prints, its exit codes, and that it never prints the data."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from trimtab.cli.data import app
from trimtab.errors import ConfigError, DataError
from trimtab.records import Preference, Prompt
from trimtab.records.importers import load

SECRET = "never-to-be-shown"


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def save(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pair(prompt: str, chosen: str | None = SECRET, rejected: str = "no") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_check_prints_counts_and_no_texts(tmp_path: Path) -> None:
    one = save(tmp_path / "one.jsonl", [pair("p"), pair("q"), pair(SECRET, None)])
    two = save(tmp_path / "two.jsonl", [pair("p")])
    result = run("check", one, two)
    assert result.exit_code == 0
    assert SECRET not in result.output
    for part in ("trl-preference", "2 preference", "'chosen' is null", "100.0%", "same prompt and answer"):
        assert part in result.output


def test_check_takes_hostile_names_as_text(tmp_path: Path) -> None:
    path = save(
        tmp_path / "[red]:boom:.jsonl", [pair("p"), {"prompt": "p", "chosen": "a", "rejected": "b", "x": 1e999}]
    )
    odd = tmp_path / "odd.jsonl"
    odd.write_text('{"prompt": "a", "[/bold]": 1}\n{"prompt": "b"}\n')
    result = run("check", path, odd)
    assert result.exit_code == 0, result.output
    assert "[red]:boom:.jsonl" in result.output.replace("\n", "")
    assert "'[/bold]' (1)" in result.output


def test_check_shows_twenty_refusals_and_json_shows_all(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", [pair("p"), *[pair("p", "") for _ in range(30)]])
    shown = run("check", path).output
    assert shown.count("the answer is empty") == 20
    assert "10 more" in shown
    report = json.loads(run("check", path, "--json").output)
    [file] = report["files"]
    assert [r["line"] for r in file["refused"]] == list(range(2, 32))
    assert (file["rows"], file["records"], report["leaks"]) == (31, {"preference": 1}, [])


def test_exit_codes(tmp_path: Path) -> None:
    mixed = save(tmp_path / "mixed.jsonl", [pair("p"), pair("p", "")])
    clean = save(tmp_path / "clean.jsonl", [pair("p")])
    useless = save(tmp_path / "useless.jsonl", [pair("p", "")])
    assert run("check", mixed).exit_code == 0
    assert run("check", mixed, "--strict").exit_code == 1
    assert run("check", clean, "--strict").exit_code == 0
    assert run("check", mixed, "--limit", 1, "--strict").exit_code == 0
    result = run("check", useless)
    assert isinstance(result.exception, DataError)
    assert result.exception.exit_code == 3
    assert "the answer is empty" in result.output
    for arguments in (["check", tmp_path / "no.jsonl"], ["check", clean, "--format", "foo"]):
        assert isinstance(run(*arguments).exception, DataError)
    assert run("check").exit_code == 2
    assert run("check", clean, "--kind", "poem").exit_code == 2


def test_check_as_a_kind(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", [pair("p"), pair("p")])
    report = json.loads(run("check", path, "--json", "--kind", "prompt").output)
    assert report["files"][0]["records"] == {"prompt": 2}
    assert report["files"][0]["duplicates"] == 1


def test_convert(tmp_path: Path) -> None:
    source = save(tmp_path / "in.jsonl", [pair("p"), pair("p", "x"), pair("q", "")])
    out = tmp_path / "out.jsonl"
    result = run("convert", source, out, "--kind", "preference")
    assert result.exit_code == 0, result.output
    assert SECRET not in result.output
    assert "the answer is empty" in result.output
    assert load(out, kind=Preference).format == "records"
    assert load(out, kind=Preference).records == load(source, kind=Preference).records
    run("convert", source, out, "--kind", "demonstration", "--to", "trl")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0] == {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": SECRET}]}
    result = run("convert", source, out, "--kind", "prompt")
    assert "dropped 1 equal prompts" in result.output
    assert [p.text for p in load(out, kind=Prompt).records] == ["p"]


def test_convert_refuses_to_overwrite_what_it_reads(tmp_path: Path) -> None:
    source = save(tmp_path / "in.jsonl", [pair("p")])
    before = source.read_bytes()
    assert isinstance(run("convert", source, tmp_path / "." / "in.jsonl", "--kind", "prompt").exception, ConfigError)
    assert source.read_bytes() == before
    assert isinstance(run("convert", source, tmp_path / "o", "--kind", "judgement").exception, DataError)
    assert not (tmp_path / "o").exists()
