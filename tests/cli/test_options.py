"""Options of ``judge`` and ``route`` are the fields of their configuration classes."""

import re

import pytest
import typer

from trimtab.cli.app import app, run_app
from trimtab.cli.options import settings_of
from trimtab.feedback import JudgeConfig, RouteConfig


def options(command: str) -> dict[str, str]:
    """Help text of each option of a command."""
    parameters = typer.main.get_command(app).commands[command].params
    return {p.opts[0]: p.help or "" for p in parameters if p.opts[0].startswith("--")}


@pytest.mark.parametrize(("command", "cls"), [("judge", JudgeConfig), ("route", RouteConfig)])
def test_every_setting_is_an_option_with_the_fields_own_text(command, cls):
    shown = options(command)
    for name, field in cls.model_fields.items():
        text = shown[f"--{name.replace('_', '-')}"]
        assert re.sub(r"\W+", "", field.description).replace("None", "null") in re.sub(r"\W+", "", text)
        assert "[default: " in text


def given(cls, *arguments: str):
    """The settings a command receives."""
    received = []

    @settings_of(cls)
    def command(*, settings: cls) -> None:
        received.append(settings)

    one = typer.Typer()
    one.command()(command)
    one(args=list(arguments), standalone_mode=False)
    return received[0]


def test_options_become_settings():
    assert given(JudgeConfig) == JudgeConfig()
    made = given(
        JudgeConfig, "--mode", "rubric", "--principles", "null", "--objectives", "helpful, honest",
        "--clamp", "0.3,0.8", "--seed", "4",
    )  # fmt: skip
    assert made == JudgeConfig(
        mode="rubric", principles=None, objectives=("helpful", "honest"), clamp=(0.3, 0.8), seed=4
    )
    assert given(JudgeConfig, "--objectives", "[helpful]").objectives == ("helpful",)
    assert given(RouteConfig, "--cost-per-hour", "20").cost_per_hour == 20.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["judge", "x.jsonl", "--out", "o", "--mode", "loud"], "mode: 'loud' is not accepted"),
        (["judge", "x.jsonl", "--out", "o", "--principles", "0"], "principles: 0 is not accepted"),
        (["route", "o", "--error", "0.7"], "error: 0.7 is not accepted"),
        (["route", "o", "--calibration", "{"], "calibration: '{' is not accepted"),
    ],
)
def test_a_wrong_value_names_the_setting(arguments, message, capsys, monkeypatch):
    monkeypatch.delenv("TRIMTAB_DEBUG", raising=False)
    assert run_app(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 128 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
    ],
)
def test_memory_that_ran_out_is_no_bug(error: Exception, monkeypatch, capsys):
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr("trimtab.cli.app.app", fail)
    assert run_app(["run"]) == 1
    printed = capsys.readouterr().err
    assert "out of memory (" in printed and "lower micro_batch_tokens" in printed and "bug" not in printed
