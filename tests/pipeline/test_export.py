"""Exported models compute what the run's models compute, in plain transformers and peft."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from trimtab.cli.app import run_app
from trimtab.errors import CheckpointError, ConfigError, ModelError
from trimtab.files import write_json
from trimtab.models import AdapterConfig, Batch, Encoded, ModelConfig, Role, collate, save_tensors
from trimtab.models.loading import load_causal_lm
from trimtab.pipeline.config import dump_config, load_recipe
from trimtab.pipeline.context import Context
from trimtab.pipeline.export import export_model, joined_adapters
from trimtab.pipeline.learning import policy_role
from trimtab.pipeline.reward_models import reward_backbone, reward_role
from trimtab.pipeline.ui import Silent
from trimtab.records import Message
from trimtab.storage import RunFolder
from trimtab.testing import prompts, save_model, tiny_model, tokenizer, toy_recipe

from ..kit import stir
from ..models.families import tiny

QUESTION = [Message(role="user", content="red bird on a green tree?")]
LORA = {"kind": "lora", "rank": 4, "alpha": 8}
MIXTURE = {"kind": "lora", "rank": 4, "alpha": 8, "experts": True}
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("mixtral", "qwen3_next", "gpt_oss", "granitemoehybrid")]


class Made:
    """A run whose weights were stirred instead of trained, and what its models compute."""

    def __init__(self, folder: Path, weights: Any = None, *, tokens: Any = None, **sections: Any) -> None:
        save_model(folder / "model", weights, tokens=tokens)
        self.recipe = toy_recipe(folder, **sections)
        self.config = load_recipe(self.recipe)
        self.run = RunFolder(folder / "runs" / "toy")
        (self.run.path / "config.yaml").write_text(dump_config(self.config))
        context = Context(config=self.config, recipe=self.recipe, run=self.run, ui=Silent())
        if self.config.sft is not None:
            trunk = context.trunk(pretrained=True)
            full = self.config.sft.adapter.kind == "full"
            role = Role(trunk, full=True) if full else Role.trainable(trunk, "sft", self.config.sft.adapter, seed=0)
            self.finish("sft", stir(role, seed=1))
        self.sft = Role(context.trunk())
        self.policy = policy_role(context, context.trunk())
        self.finish("align", stir(self.policy, seed=2))
        if self.config.reward is not None:
            self.reward = reward_role(context, reward_backbone(context, context.trunk()))
            self.finish("reward", stir(self.reward, seed=3), needs={"sft": "sft-print"})
            write_json(self.run.stage("reward") / "reward.json", {"mean": 0.5, "std": 2.0, "evaluation": None})

    def finish(self, stage: str, role: Role, needs: dict[str, str] | None = None) -> None:
        folder = self.run.begin(stage, f"{stage}-print", needs or {"sft": "sft-print"})
        save_tensors(folder / "weights.safetensors", role.state())
        self.run.finish(stage, seconds=1.0, counts={"rows": 7}, outputs=["weights.safetensors"], memory_gb=0.1)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    return Made(tmp_path_factory.mktemp("made"))


def batch_of(conversations: list[Encoded]) -> Batch:
    return collate([c.tokens for c in conversations], [c.response_mask for c in conversations], torch.device("cpu"))


def with_adapter(base: Any, folder: Path) -> PeftModel:
    with warnings.catch_warnings():  # peft asks transformers for a name that is deprecated there
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return PeftModel.from_pretrained(base, folder)


def logprobs_here(role: Role) -> torch.Tensor:
    """log p of each token of an answer, as trimtab computes it."""
    chat = role.backbone.chat
    encoded = chat.answer(QUESTION, "a small boat.")
    with torch.no_grad():
        return role.logprobs(batch_of([encoded]))[0, -sum(encoded.response_mask) :]


def logprobs_there(model: Any, tokenizer: Any, *, system: str | None = None) -> torch.Tensor:
    """The same from a model and a tokenizer in plain transformers."""
    head = [{"role": "system", "content": system}] if system else []
    question = [*head, {"role": "user", "content": QUESTION[0].content}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    tokens = tokenizer.encode(prompt, add_special_tokens=False)
    answer = [*tokenizer.encode("a small boat.", add_special_tokens=False), tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([tokens + answer])).logits[0, len(tokens) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]


def test_the_merged_model_computes_what_the_policy_computes(made, tmp_path):
    for stage, role in (("policy", made.policy), ("sft", made.sft)):
        folder = export_model(made.run.path, tmp_path / stage, stage=stage)
        model, tokens = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        torch.testing.assert_close(logprobs_there(model, tokens), logprobs_here(role), atol=1e-5, rtol=1e-4)
        assert {f.name for f in folder.iterdir()} >= {"model.safetensors", "config.json", "README.md"}
        assert "_name_or_path" not in (folder / "config.json").read_text()
    assert not torch.allclose(logprobs_here(made.policy), logprobs_here(made.sft), atol=1e-3)


@pytest.mark.parametrize(
    ("model", "sections"),
    [
        ({"architecture": "qwen2"}, {}),
        ({"architecture": "gpt2"}, {}),
        ({"tied": True}, {}),
        ({}, {"sft": None, "data": {"prompts": "data/prompts.jsonl", "heldout": "data/heldout.jsonl"}}),
        ({}, {"reward": None, "align": {"method": "dpo", "adapter": LORA}}),
    ],
    ids=["qwen2", "gpt2", "tied", "no-sft", "dpo"],
)
def test_one_adapter_on_the_pretrained_model_equals_sft_and_alignment_together(tmp_path, model, sections):
    made = Made(tmp_path, tiny_model(**model), **sections)
    merged = export_model(made.run.path, tmp_path / "merged")
    there = AutoModelForCausalLM.from_pretrained(merged)
    folder = export_model(made.run.path, tmp_path / "adapter", adapter=True)
    base = AutoModelForCausalLM.from_pretrained(made.config.model.name)
    tuned = with_adapter(base, folder)
    tokens = AutoTokenizer.from_pretrained(folder)
    expected = logprobs_here(made.policy)
    torch.testing.assert_close(logprobs_there(there, tokens), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logprobs_there(tuned, tokens), expected, atol=1e-5, rtol=1e-4)
    assert not [name for name, p in tuned.named_parameters() if ".lora_" in name and p.isnan().any()]


def test_a_run_on_an_adapter_is_exported_merged_and_not_as_an_adapter(made, tmp_path):
    base = export_model(made.run.path, tmp_path / "base", adapter=True)
    sections = {"reward": None, "align": {"method": "dpo", "adapter": LORA}}
    second = Made(tmp_path, model={"name": str(base), "context": 64}, **sections)
    folder = export_model(second.run.path, tmp_path / "merged")
    model, tokens = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    torch.testing.assert_close(logprobs_there(model, tokens), logprobs_here(second.policy), atol=1e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match=r"base is itself an adapter, of .*drop --adapter to export merged weights"):
        export_model(second.run.path, tmp_path / "adapter", adapter=True)


def test_full_weights_are_exported_merged_and_have_no_adapter(tmp_path):
    full = {"adapter": {"kind": "full"}}
    made = Made(tmp_path, sft=full, align={"method": "dpo"} | full, reward=None)
    folder = export_model(made.run.path, tmp_path / "merged")
    model, tokens = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    torch.testing.assert_close(logprobs_there(model, tokens), logprobs_here(made.policy), atol=1e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match="sft and align trained all weights"):
        export_model(made.run.path, tmp_path / "adapter", adapter=True)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("kind", ["deepseek_v3", *SLOW])
def test_adapters_on_experts_are_exported(tmp_path, kind):
    """Merged and as one adapter of both stages, on different layers, beside dense and shared MLPs."""
    align = {"method": "dpo", "adapter": MIXTURE | {"rank": 3, "top_layers": 2}}
    made = Made(tmp_path, tiny(kind), sft={"adapter": MIXTURE}, align=align, reward=None)
    expected = logprobs_here(made.policy)
    assert not torch.allclose(expected, logprobs_here(made.sft), atol=1e-2)
    merged = export_model(made.run.path, tmp_path / "merged")
    folder = export_model(made.run.path, tmp_path / "adapter", adapter=True)
    tokens = AutoTokenizer.from_pretrained(folder)
    there = AutoModelForCausalLM.from_pretrained(merged)
    torch.testing.assert_close(logprobs_there(there, tokens), expected, atol=1e-4, rtol=1e-3)
    tuned = with_adapter(AutoModelForCausalLM.from_pretrained(made.config.model.name), folder)
    torch.testing.assert_close(logprobs_there(tuned, tokens), expected, atol=1e-4, rtol=1e-3)
    stored = load_file(folder / "adapter_model.safetensors")
    assert stored.keys() == get_peft_model_state_dict(tuned).keys()
    again = load_causal_lm(ModelConfig(name=str(folder), context=64))
    torch.testing.assert_close(logprobs_there(again, tokens), expected, atol=1e-4, rtol=1e-3)


def test_a_joined_adapter_is_the_sum_of_its_parts():
    torch.manual_seed(0)

    def part(rank: int, modules: str) -> dict[str, torch.Tensor]:
        shapes = {"A": (rank, 5), "B": (6, rank)}
        return {f"{m}.lora_{x}.adapter.weight": torch.randn(s) for m in modules for x, s in shapes.items()}

    one, two = part(2, "pq"), part(3, "qr")
    joined = joined_adapters([(AdapterConfig(rank=2, alpha=4), one), (AdapterConfig(rank=3, alpha=1), two)])

    def delta(tensors: dict[str, torch.Tensor], module: str, name: str) -> torch.Tensor:
        return tensors[f"{module}.lora_B{name}"] @ tensors[f"{module}.lora_A{name}"]

    for module in "pqr":
        expected = torch.zeros(6, 5)
        if module in "pq":
            expected += 2.0 * delta(one, module, ".adapter.weight")
        if module in "qr":
            expected += delta(two, module, ".adapter.weight") / 3
        torch.testing.assert_close(delta(joined, module, ".weight"), expected)


@pytest.mark.parametrize("pad_is_eos", [False, True])
@pytest.mark.parametrize("adapter", [False, True], ids=["merged", "adapter"])
def test_the_reward_model_becomes_a_sequence_classifier(tmp_path, pad_is_eos, adapter):
    """Also in a padded batch, and where the tokenizer pads with the token that ends a turn."""
    made = Made(tmp_path, tokens=tokenizer(pad_is_eos=pad_is_eos))
    folder = export_model(made.run.path, tmp_path / "reward", stage="reward", adapter=adapter)
    tokens = AutoTokenizer.from_pretrained(folder)
    if adapter:
        base = AutoModelForSequenceClassification.from_pretrained(made.config.model.name, num_labels=1)
        base.config.pad_token_id = tokens.pad_token_id
        model = with_adapter(base, folder)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.eval()
    chat = made.reward.backbone.chat
    one, two = (p.messages for p in prompts(2))
    conversations = [chat.answer(one, "a boat."), chat.answer(two, "the sea sings a song")]
    with torch.no_grad():
        here = made.reward.scores(batch_of(conversations))
        batch = tokens.pad({"input_ids": [c.tokens for c in conversations]}, padding_side="right", return_tensors="pt")
        there = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    assert made.reward.scalar is not None
    bias = float(made.reward.scalar.bias.detach())
    torch.testing.assert_close(there + bias, here, atol=1e-5, rtol=1e-4)
    assert f"plus {bias:.6g}" in (folder / "README.md").read_text()
    if not adapter:
        assert json.loads((folder / "config.json").read_text())["reward_bias"] == pytest.approx(bias)


def test_a_reward_model_of_its_own_is_exported_without_the_policys_sft(tmp_path):
    own = save_model(tmp_path / "own", tiny_model(layers=2, width=16, seed=5))
    made = Made(tmp_path, reward={"model": {"name": str(own), "context": 64}, "adapter": LORA})
    folder = export_model(made.run.path, tmp_path / "reward", stage="reward")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    encoded = made.reward.backbone.chat.answer(QUESTION, "a boat.")
    assert made.reward.scalar is not None
    with torch.no_grad():
        there = model(torch.tensor([encoded.tokens])).logits[0, 0] + made.reward.scalar.bias[0]
        torch.testing.assert_close(there, made.reward.scores(batch_of([encoded]))[0], atol=1e-5, rtol=1e-4)
    assert model.config.hidden_size == 16


def test_answers_end_where_they_ended_in_training(made, tmp_path):
    folder = export_model(made.run.path, tmp_path / "policy")
    generation = GenerationConfig.from_pretrained(folder)
    chat = made.policy.backbone.chat
    ends = generation.eos_token_id
    assert set([ends] if isinstance(ends, int) else ends) == set(chat.end_tokens)
    assert (generation.do_sample, generation.temperature, generation.top_p) == (True, 1.0, 1.0)


@pytest.mark.parametrize("system", ["Be brief.", "Say 'hello' \\ and\nbe {{ kind }} {% now %}."])
def test_the_template_adds_the_recipes_system_message(tmp_path, system):
    made = Made(tmp_path, model={"name": str(tmp_path / "model"), "context": 128, "system": system})
    folder = export_model(made.run.path, tmp_path / "policy")
    tokens, chat = AutoTokenizer.from_pretrained(folder), made.policy.backbone.chat
    for conversation in ([("user", "a bird?")], [("system", "Sing."), ("user", "a bird?")]):
        messages = [Message(role=role, content=text) for role, text in conversation]
        plain = [m.model_dump() for m in messages]
        text = tokens.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
        assert tokens.encode(text, add_special_tokens=False) == chat.prompt(messages)


def test_the_model_card_states_the_runs_facts(made, tmp_path):
    card = (export_model(made.run.path, tmp_path / "policy") / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "transformers" and "ppo" in head["tags"] and "license" not in head
    assert "licence: unknown" in card and "simulated annotators, not from people" in card
    assert "| sft | sft | LoRA, rank 4 | rows 7 |" in card and "| align | ppo |" in card
    assert "demonstrations.jsonl`" in card and "recorded no evaluation" in card
    assert str(tmp_path.parent) not in card and str(made.run.path.parent.parent) not in card
    settings = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert settings["align"]["method"] == "ppo" and settings["model"]["name"] == "model"
    settings["model"]["name"] = made.config.model.name  # of a local folder the card gives the last name only
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(settings))
    assert load_recipe(tmp_path / "again.yaml") == made.config


@pytest.mark.parametrize("stage", ["policy", "reward"])
def test_the_code_on_the_card_runs(made, tmp_path, stage, capsys):
    folder = export_model(made.run.path, tmp_path / stage, stage=stage)
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder))
    scope: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), scope)
    if stage == "policy":
        assert capsys.readouterr().out
        return
    conversation = [Message(**m) for m in scope["conversation"]]
    here = made.reward.scores(batch_of([made.reward.backbone.chat.conversation(conversation)]))
    assert made.reward.scalar is not None
    assert scope["score"] + made.reward.scalar.bias.item() == pytest.approx(here.item(), abs=1e-4)


def test_the_licence_of_the_base_model_is_passed_on(tmp_path):
    made = Made(tmp_path)
    (tmp_path / "model" / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    card = (export_model(made.run.path, tmp_path / "policy") / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ("missing", {}, "is not the folder of a run"),
        ("recipe", {}, "not its recipe"),
        ("running", {}, "stage 'align' is not finished"),
        ("never", {"stage": "reward"}, "stage 'reward' has not been run"),
        ("unstaged", {"stage": "reward"}, "has no section 'reward', so there is no reward model; it has sft, policy"),
        ("full folder", {}, "exists and is not an empty folder"),
        ("file", {}, "exists and is not an empty folder"),
        ("damaged", {}, "missing or not as the run wrote it"),
        ("sft again", {}, "trained on another SFT model"),
        ("", {"gguf": True}, "set LLAMA_CPP to its folder"),
        ("", {"gguf": True, "adapter": True}, "drop --adapter"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_left(tmp_path, monkeypatch, change, options, message):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    sections = {"reward": None, "align": {"method": "dpo", "adapter": LORA}} if change == "unstaged" else {}
    made = Made(tmp_path, **sections)
    run, folder = made.run.path, tmp_path / "out"
    status = run / "stages" / "align" / "status.json"
    if change == "missing":
        run = tmp_path / "nowhere"
    elif change == "recipe":
        run = made.recipe
    elif change == "running":
        status.write_text(status.read_text().replace('"done"', '"running"'))
    elif change == "never":
        (run / "stages" / "reward" / "status.json").unlink()
    elif change == "full folder":
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
    elif change == "file":
        folder.write_text("mine")
    elif change == "damaged":
        (run / "stages" / "align" / "weights.safetensors").write_bytes(b"half")
    elif change == "sft again":
        sft = run / "stages" / "sft" / "status.json"
        sft.write_text(sft.read_text().replace("sft-print", "another"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ConfigError, CheckpointError), match=message):
        export_model(run, folder, **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_export_that_fails_half_way_leaves_nothing(made, tmp_path, monkeypatch):
    monkeypatch.setattr("trimtab.pipeline.export.model_card", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_model(made.run.path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_gguf_is_made_by_llama_cpps_converter(made, tmp_path, monkeypatch):
    """A stand-in with the converter's command line; the real one is not installed here."""
    script = tmp_path / "llama.cpp" / "convert_hf_to_gguf.py"
    script.parent.mkdir()
    monkeypatch.setenv("LLAMA_CPP", str(script.parent))
    script.write_text(
        "import pathlib, sys\nfolder, option, out = sys.argv[1:]\nassert option == '--outfile'\n"
        "assert (pathlib.Path(folder) / 'model.safetensors').exists()\npathlib.Path(out).write_bytes(b'GGUF')\n"
    )
    assert (export_model(made.run.path, tmp_path / "out", gguf=True) / "model.gguf").read_bytes() == b"GGUF"
    script.write_text("raise SystemExit('Model LlamaForCausalLM is not supported')")
    with pytest.raises(ModelError, match="is not supported"):
        export_model(made.run.path, tmp_path / "again", gguf=True)
    assert not (tmp_path / "again").exists()


def test_a_finished_run_is_exported_from_the_command_line(tmp_path, capsys):
    recipe = toy_recipe(tmp_path, sample=None, label=None, reward=None, align=None)
    assert run_app(["run", str(recipe), "--runs", str(tmp_path / "runs")]) == 0
    capsys.readouterr()
    folder = tmp_path / "exported"
    assert run_app(["model", "export", str(tmp_path / "runs" / "toy"), str(folder), "--stage", "sft"]) == 0
    assert capsys.readouterr().out.strip() == str(folder)
    card = (folder / "README.md").read_text()
    assert "nats per token" in card and "preferred over the pretrained model, judged by the simulated utility" in card
    assert run_app(["chat", str(folder), "--once", "red bird?", "--max-new-tokens", "4"]) == 0
    assert run_app(["model", "export", str(tmp_path / "runs" / "toy"), str(folder), "--stage", "sft"]) == 2
    assert run_app(["model", "export", str(tmp_path / "runs" / "toy"), str(tmp_path / "policy")]) == 2
    assert "it has sft" in capsys.readouterr().err
