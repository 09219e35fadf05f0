"""The command line as a person uses it: one run in a process of its own, all else in this one."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from trimtab.cli.app import run_app
from trimtab.models import Chat
from trimtab.records import Message
from trimtab.rollout import SamplerConfig
from trimtab.testing import save_model, toy_recipe

from ..chat_families import family_tokenizer

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "init run watch plan sft sample label reward align eval report judge route annotate agreement chat doctor data "
    "model"
).split()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A toy recipe that was run once through the command line, and what it printed."""
    folder = tmp_path_factory.mktemp("cli")
    recipe = toy_recipe(folder)
    printed = trimtab("run", str(recipe), "--runs", str(folder / "runs"), "--json")
    assert printed.returncode == 0, printed.stderr
    return recipe, folder / "runs", printed


def trimtab(*arguments: str, **options) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | options.pop("env", {})
    command = [sys.executable, "-c", "from trimtab.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, **options)


@pytest.fixture
def fails(capsys, monkeypatch):
    """Run a command that must fail; returns its message."""
    monkeypatch.delenv("TRIMTAB_DEBUG", raising=False)

    def run(*arguments: str, code: int) -> str:
        assert run_app(list(arguments)) == code
        printed = capsys.readouterr().err
        assert "Traceback" not in printed
        return " ".join(printed.split())

    return run


def test_help_of_every_command_is_quick_and_needs_no_torch():
    check = (
        "import sys\nfrom trimtab.cli.app import run_app\n"
        f"codes = [run_app(['--help'])] + [run_app([c, '--help']) for c in {COMMANDS!r}]\n"
        "assert codes == [0] * len(codes), codes\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_help_groups_the_commands_by_task(capsys):
    assert run_app(["--help"]) == 0
    shown = capsys.readouterr().out
    titles = ["Start here", "Run a recipe", "Collect and check labels", "Use a model", "Data"]
    places = [shown.index(f"─ {title} ") for title in titles]
    assert places == sorted(places)
    assert places[0] < shown.index(" init ") < places[1] < shown.index(" align ") < places[2] < shown.index(" route ")


def test_run_prints_a_summary_and_leaves_a_report(done):
    _, runs, printed = done
    summary = json.loads(printed.stdout)
    assert [*summary["stages"]] == sorted(
        ["sft", "sample", "label", "preferences", "reward", "align", "evaluate", "report"]
    )
    assert all(stage["state"] == "done" for stage in summary["stages"].values())
    page = Path(summary["report"])
    assert page.is_relative_to(runs) and "simulated" in page.read_text().lower()
    assert {row["judge"] for row in summary["win_rates"]} == {"gold", "proxy"}


def test_a_second_run_skips_everything_and_report_writes_the_page_again(done, capsys):
    recipe, runs, printed = done
    page = Path(json.loads(printed.stdout)["report"])
    before = page.stat().st_mtime_ns
    assert run_app(["run", str(recipe), "--runs", str(runs)]) == 0
    assert capsys.readouterr().err.count("done before, skipped") == 8
    assert page.stat().st_mtime_ns == before
    assert run_app(["report", str(recipe), "--runs", str(runs)]) == 0
    assert page.stat().st_mtime_ns > before


def test_a_report_of_several_processes_stores_the_recipes_scale(done, monkeypatch):
    recipe, runs, _ = done
    monkeypatch.setattr("trimtab.pipeline.scale.launch", lambda *_: 0)  # all stages are done
    several = ["--set", "scale.kind=torchrun", "--set", "scale.processes=2"]
    assert run_app(["report", str(recipe), "--runs", str(runs), *several]) == 0
    written = [runs / "toy" / "config.yaml", runs / "toy" / "stages" / "report" / "config.yaml"]
    assert all("kind: torchrun" in file.read_text() and "processes: 2" in file.read_text() for file in written)


@pytest.mark.parametrize(
    "arguments", [["round"], ["data", "withdraw", "--annotator", "a"], ["eval", "--suite", "honesty"]]
)
def test_a_command_of_one_process_is_refused_under_torchrun(done, fails, monkeypatch, arguments):
    recipe, runs, _ = done
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    message = fails(*arguments, str(runs / "toy"), code=2)
    assert "this is one of 2 processes" in message and f"`trimtab {arguments[0]}" in message and "unset RANK" in message
    assert "of 2 processes" in fails("eval", str(recipe), "--runs", str(runs), "--read", "x.csv", code=2)


def test_plan_says_what_is_done_and_what_would_run(done, capsys):
    recipe, runs, _ = done
    assert run_app(["plan", str(recipe), "--runs", str(runs), "--json"]) == 0
    assert {row["state"] for row in json.loads(capsys.readouterr().out)["stages"]} == {"done"}
    assert run_app(["plan", str(recipe), "--runs", str(runs), "--json", "--set", "align.kl.coefficient=0"]) == 0
    plan = json.loads(capsys.readouterr().out)
    states = {row["stage"]: row["state"] for row in plan["stages"]}
    assert states["reward"] == "done" and states["align"] == states["evaluate"] == states["report"] == "run"
    assert any("nothing holds the policy" in warning for warning in plan["warnings"])


def test_plan_leaves_no_folder_behind(tmp_path, capsys):
    recipe = toy_recipe(tmp_path)
    assert run_app(["plan", str(recipe), "--runs", str(tmp_path / "runs")]) == 0
    assert "max E[reward]" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_chat_answers_once_with_a_run_and_with_a_model_folder(done, tmp_path, capsys, monkeypatch):
    recipe, runs, _ = done
    once = ["chat", str(recipe), "--runs", str(runs), "--once", "red bird?", "--max-new-tokens", "8"]
    assert run_app(once) == 0
    assert capsys.readouterr().out.strip()
    folder = save_model(tmp_path / "model")
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/reset\nhi\n/quit\n"))
    assert run_app(["chat", str(folder), "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.count("you: ") == 4


def test_chat_forgets_the_oldest_turns_and_says_so(tmp_path):
    from trimtab.pipeline.talk import Talk

    folder = save_model(tmp_path / "model")
    talk = Talk.open(str(folder), which="policy", runs=tmp_path, temperature=0.0, max_new_tokens=8)
    talk.sampler.backbone.chat.context = 64
    assert sum(talk.answer("red bird on a green tree").forgotten for _ in range(6)) > 0


class Thinker:
    """A model that thinks for many words before it says "four"; answers nothing where the limit cuts the thought."""

    def __init__(self, family: str, words: int) -> None:
        self.backbone = SimpleNamespace(chat=Chat(family_tokenizer("bytes", family), context=512))
        self.config = SamplerConfig(max_new_tokens=8)
        self.whole = ["" if family == "r1" else "<think>", *["hm"] * words, "</think>", "four"]
        self.seen: list[list[str]] = []

    def generate(self, prompts, *, adapter, seed):
        self.seen.append([m.content for m in prompts[0].messages])
        text = " ".join(self.whole[: self.config.max_new_tokens]).strip()
        cut = len(self.whole) > self.config.max_new_tokens
        return [SimpleNamespace(text=text, finish_reason="length" if cut else "stop")]


@pytest.mark.parametrize("family", ["qwen3", "r1", "chatml"])
def test_a_cut_thought_is_no_answer_and_raises_the_limit(family: str, capsys):
    """Also where the prompt opens the thought, and where the template knows no thoughts."""
    from trimtab.cli.chat import _say
    from trimtab.pipeline.talk import Talk

    thinker = Thinker(family, 30)
    talk = Talk(sampler=thinker, adapter=None)  # pyright: ignore
    reply = talk.answer("two and two?")
    assert (reply.raised, reply.limit, reply.unfinished, reply.cut) == (True, 64, False, False)
    assert [m.role for m in talk.turns] == ["user", "assistant"] and talk.turns[1].content.endswith("four")
    _say(reply)
    assert "a thought was cut; --max-new-tokens is 64 from now on" in capsys.readouterr().err
    assert not talk.answer("and three?").raised, "the limit stays raised"

    thinker.whole[1:1] = ["hm"] * 1000
    before = list(talk.turns)
    reply = talk.answer("and four?")
    assert reply.unfinished and reply.limit == 256 and talk.turns == before
    _say(reply)
    assert "the thought was cut at 256 tokens, half the context: no answer" in capsys.readouterr().err
    thinker.whole = ["four"] if family != "r1" else ["</think>", "four"]
    talk.answer("and five?")
    assert "and four?" not in thinker.seen[-1] and thinker.seen[-1][-1] == "and five?"


def test_text_about_thoughts_is_an_answer():
    chat = Thinker("chatml", 1).backbone.chat
    prompt = [Message(role="user", content="q")]
    assert not chat.unfinished_thought(prompt, "Write <think> before it.")
    assert not chat.unfinished_thought(prompt, "<think>a</think> b") and not chat.unfinished_thought(prompt, "four")
    assert not chat.unfinished_thought(prompt, "[Reasoning] two and two")
    assert chat.unfinished_thought(prompt, "  <think>a")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "nowhere.yaml"], 2, "nowhere.yaml: cannot be read"),
        (["run", "{recipe}", "--set", "align.stps=3"], 2, "align.stps: unknown key; did you mean 'steps'?"),
        (["run", "{recipe}", "--set", "aling.steps=3"], 2, "aling: unknown key; did you mean 'align'?"),
        (["run", "{recipe}", "--set", "align.steps=many"], 2, "align.steps: 'many' is not accepted"),
        (["run", "{recipe}", "--set", "align.steps"], 2, "expected key.path=value"),
        (["run", "{recipe}", "--until", "serve"], 2, "no stage 'serve'"),
        (["plan", "{recipe}", "--set", "align.sampler.top_p=0.9"], 2, "use top_p: 1.0 while training"),
        (["plan", "{recipe}", "--set", "gold=null"], 2, "needs gold"),
        (["run", "{recipe}", "--set", "model.name=./nothing"], 4, "'./nothing' is not a folder here"),
        (["run", "{recipe}", "--set", "data.demonstrations=missing.jsonl"], 3, "missing.jsonl"),
        (["chat", "{recipe}", "--model", "judge"], 2, "has no model 'judge'"),
        (["data", "check", "missing.jsonl"], 3, "missing.jsonl"),
        (["doctor", "--long"], 2, "--long: only with --conformance, which is not given"),
        (["doctor", "--seeds", "1", "--out", "t.json"], 2, "--seeds and --out: only with --conformance"),
    ],
)
def test_mistakes_get_a_message_and_a_code(arguments, code, message, fails, tmp_path):
    recipe = str(toy_recipe(tmp_path))
    runs = [] if arguments[0] in ("data", "doctor") else ["--runs", str(tmp_path / "runs")]
    assert message in fails(*(recipe if a == "{recipe}" else a for a in arguments), *runs, code=code)


def test_a_run_is_not_named_without_its_folder(fails, tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.yaml").write_text("name: first")
    message = fails("chat", "first", "--runs", str(tmp_path), code=2)
    assert f"'first' is not a model; to use the run of this name, give its folder: {tmp_path / 'first'}" in message


def test_malformed_recipes(fails, tmp_path):
    recipe = tmp_path / "r.yaml"
    for text, message in (("a: [", "not valid YAML"), ("- a", "a recipe is a mapping"), ("name: x", "has no stage")):
        recipe.write_text(text)
        assert message in fails("run", str(recipe), "--runs", str(tmp_path), code=2)


def test_empty_data_file(fails, tmp_path):
    recipe = toy_recipe(tmp_path)
    (tmp_path / "data" / "demonstrations.jsonl").write_text("")
    assert "demonstrations.jsonl" in fails("run", str(recipe), "--runs", str(tmp_path / "runs"), code=3)


def test_debug_shows_the_traceback(capsys, monkeypatch):
    monkeypatch.setenv("TRIMTAB_DEBUG", "")
    assert run_app(["run", "nowhere.yaml", "--debug"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed and "error:" in printed


def test_a_bug_of_ours_has_its_own_code(fails, monkeypatch):
    monkeypatch.setattr("trimtab.pipeline.config.load_recipe", lambda *_: 1 / 0)
    assert "bug in trimtab" in fails("run", "r.yaml", code=70)


def test_doctor(capsys):
    assert run_app(["doctor", "--json"]) == 0
    findings = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    assert findings["optimiser step"]["state"] == "ok" and findings["matrix product"]["text"].endswith("float32")


def test_version(capsys):
    assert run_app(["--version"]) == 0
    assert capsys.readouterr().out.strip().count(".") == 2


def test_the_quickstart_recipe_is_valid(capsys, tmp_path, monkeypatch):
    """Its plan needs the model's shape only; where the default model is not prepared the tiny one stands in."""
    model = save_model(tmp_path / "model")
    arguments = ["--set", f"model.name={model}", "--set", "model.context=128", "--runs", str(tmp_path)]
    assert run_app(["plan", str(ROOT / "recipes" / "quickstart.yaml"), *arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert next(r for r in plan["stages"] if r["stage"] == "sft")["what"].startswith("337 demonstrations")
