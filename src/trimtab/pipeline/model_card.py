"""The README.md of an exported model, from what its run recorded."""

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from huggingface_hub import try_to_load_from_cache
from pydantic import BaseModel

from trimtab import __version__
from trimtab.files import sha256_file
from trimtab.models import embedded, load_tensors
from trimtab.pipeline.config import RunConfig
from trimtab.pipeline.evaluation_result import read_evaluation
from trimtab.pipeline.reward_result import read_reward_result
from trimtab.pipeline.small_results import read_sft
from trimtab.storage import RunFolder

STAGES = {"sft": ("sft",), "policy": ("sft", "align"), "reward": ("sft", "reward")}
"""Stages whose training is in each exported model."""

NAMES = {"policy": "aligned policy", "sft": "model after supervised fine-tuning", "reward": "reward model"}


def model_card(config: RunConfig, run: RunFolder, stage: str, *, adapter: bool) -> str:
    """Front matter for the hub, then use, base model, data, training and results.

    Args:
        config: the configuration the model was trained with.
        run: the run's folder.
        stage: ``sft``, ``policy`` or ``reward``.
        adapter: True: the folder contains a LoRA adapter.
    """
    reward = config.reward.model if stage == "reward" and config.reward is not None else None
    name = (reward or config.model).name
    licence, licence_from = base_licence(name)
    method = config.align.method if stage == "policy" and config.align is not None else stage
    head: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-classification" if stage == "reward" else "text-generation",
        "tags": ["trimtab", "rlhf", method.replace("_", "-")],
    }
    if hub_name(name):
        head = {"base_model": hub_name(name)} | head
    if licence:
        head = {"license": licence} | head
    parts = [
        "---\n" + yaml.safe_dump(head, sort_keys=False) + "---",
        f"# {config.name}: {NAMES[stage]}",
        (config.about + "\n\n" if config.about else "")
        + f"Made with trimtab {__version__} from the run `{config.name}`. "
        + ("This folder holds a LoRA adapter on the base model." if adapter else "The weights are merged, in float32."),
    ]
    if config.gold or (config.label is not None and config.label.source == "simulated"):
        parts.append("**The preferences or the scores of this run come from simulated annotators, not from people.**")
    parts.append("## Use\n\n```python\n" + _usage_example(stage, adapter, name) + "```")
    if stage == "reward":
        parts.append(_reward_scale(run))
    parts.append(
        f"## Base model\n\n`{_public(name)}`, licence: "
        + (f"{licence} ({licence_from})." if licence else "unknown to trimtab; look it up before you share this model.")
    )
    parts.append("## Data\n\n" + _data(config))
    parts.append("## Training\n\n" + _training(config, run, stage))
    results = _results(run, stage)
    parts.append("## Results\n\n" + (results or "The run recorded no evaluation of this model."))
    settings = _public(changed_settings(config))
    recipe = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    parts.append("## Recipe\n\nSettings that differ from the defaults.\n\n```yaml\n" + recipe + "```")
    return "\n\n".join(parts) + "\n"


def changed_settings(config: BaseModel, defaults: BaseModel | None = None) -> dict[str, Any]:
    """Plain values of the settings that differ from the defaults, and the names that select a kind (``method``).

    Args:
        config: a configuration.
        defaults: the configuration with the defaults; None: the defaults of the class.
    """
    values: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        same_kind = type(defaults) is type(config)
        default = getattr(defaults, name) if same_kind else field.get_default(call_default_factory=True)  # type: ignore
        selects = get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
        if selects or value != default:
            values[name] = _plain(value, default)
    return values


def _plain(value: Any, default: Any) -> Any:
    if isinstance(value, BaseModel):
        return changed_settings(value, default if isinstance(default, BaseModel) else None)
    if isinstance(value, dict):
        return {key: _plain(inner, None) for key, inner in value.items()}
    return [_plain(inner, None) for inner in value] if isinstance(value, list | tuple) else value


def hub_name(name: str) -> str | None:
    """Name of a base model on the Hugging Face hub; None for a local folder."""
    if name == embedded.NAME:
        return "HuggingFaceTB/SmolLM2-135M-Instruct"
    return None if Path(name).is_dir() else name


def base_licence(name: str) -> tuple[str | None, str]:
    """Licence of a base model, and where it is stated; reads only files on this machine."""
    if name == embedded.NAME:
        return (
            "apache-2.0",
            "as published; trimtab's copy was quantised to 4 bits and back, so its weights differ a little",
        )
    card = Path(name) / "README.md"
    if not card.is_file():
        cached = None if Path(name).is_dir() else try_to_load_from_cache(name, "README.md")
        if not isinstance(cached, str):
            return None, ""
        card = Path(cached)
    text = card.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return None, ""
    try:
        values = yaml.safe_load(text.split("---", 2)[1])
    except yaml.YAMLError:
        return None, ""
    licence = values.get("license") if isinstance(values, dict) else None
    return (licence, "from its model card") if isinstance(licence, str) else (None, "")


def _public(value: Any) -> Any:
    """A value with file names instead of absolute paths, so that a card names no folder of this machine."""
    if isinstance(value, dict):
        return {key: _public(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_public(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _usage_example(stage: str, adapter: bool, name: str) -> str:
    base = hub_name(name) or _public(name)
    if stage == "reward":
        load = (
            "from peft import PeftModel\n"
            f'base = AutoModelForSequenceClassification.from_pretrained("{base}", num_labels=1)\n'
            "base.config.pad_token_id = tokenizer.pad_token_id\n"
            'model = PeftModel.from_pretrained(base, "FOLDER")\n'
            if adapter
            else 'model = AutoModelForSequenceClassification.from_pretrained("FOLDER")\n'
        )
        return (
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n' + load + "conversation = [\n"
            '    {"role": "user", "content": "What is a trim tab?"},\n'
            '    {"role": "assistant", "content": "A small surface on a rudder."},\n]\n'
            "text = tokenizer.apply_chat_template(conversation, tokenize=False).rstrip()  # ends with the end token\n"
            'inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")\n'
            "score = model(**inputs).logits.item()\n"
        )
    load = (
        "from peft import PeftModel\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
        'model = PeftModel.from_pretrained(base, "FOLDER")\n'
        if adapter
        else 'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
    )
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        + load
        + 'question = [{"role": "user", "content": "Hello"}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    question, add_generation_prompt=True, return_tensors="pt", return_dict=True\n)\n'
        "output = model.generate(**inputs, max_new_tokens=100)\n"
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))\n'
    )


def _reward_scale(run: RunFolder) -> str:
    result = read_reward_result(run.stage("reward"))
    bias = float(load_tensors(run.stage("reward") / "weights.safetensors")["head.bias"][0])
    return (
        f"trimtab's reward is the score plus {bias:.6g} (a classifier in transformers has no bias). The run used it as "
        f"(reward − {result.mean:.6g}) / {result.std:.6g}, normalised over answers it was trained on. "
        "It was trained on differences between answers to one prompt; its scale and its zero mean nothing."
    )


def _data(config: RunConfig) -> str:
    lines = []
    for field in ("demonstrations", "preferences", "ratings", "prompts", "heldout", "redteam"):
        source = getattr(config.data, field)
        if source is not None:
            path = Path(source)
            digest = f", SHA-256 `{sha256_file(path)}`" if path.is_file() else ""
            lines.append(f"- {field}: `{_public(source)}`{digest}")
    if config.label is not None:
        lines.append(f"- preferences: labels of the run, source `{config.label.source}`")
    return "\n".join(lines) or "The recipe names no data file."


def _training(config: RunConfig, run: RunFolder, stage: str) -> str:
    rows = []
    for name in STAGES[stage]:
        status = (run.first if name == "sft" else run).status(name)
        section = getattr(config, name)
        if status is None or section is None:
            continue
        counts = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in (status.counts or {}).items() if v not in (0, None))
        kind = section.method if name == "align" else name
        weights = f"LoRA, rank {section.adapter.rank}" if section.adapter.kind == "lora" else "all weights"
        rows.append(f"| {name} | {kind} | {weights} | {counts} | {status.seconds:.0f} s |")
    return "| stage | method | trained | counts | time |\n|---|---|---|---|---|\n" + "\n".join(rows)


def _results(run: RunFolder, stage: str) -> str:
    """What the run measured on held-out data, without measurements of other versions of this model."""
    lines: list[str] = []
    sft = run.stage("sft") / "sft.json"
    if stage == "sft" and sft.is_file():
        facts = read_sft(sft.parent)
        before, after = facts.heldout_nll_before, facts.heldout_nll_after
        if before is not None and after is not None:
            lines.append(f"- held-out negative log-likelihood: {before:.3f} → {after:.3f} nats per token")
    if stage == "reward":
        result = read_reward_result(run.stage("reward")).evaluation
        if result:
            accuracy = _interval(result.accuracy.value, result.accuracy.low, result.accuracy.high)
            lines.append(
                f"- held-out accuracy: {accuracy} on {result.pairs} pairs; always choosing the longer answer: "
                f"{result.longest.value:.1%}"
            )
        return "\n".join(lines)
    trained = {"sft": "sft", "policy": "align"}[stage]
    if not run.is_finished("evaluate") or not run.made_from("evaluate", trained):
        return "\n".join(lines)
    evaluation = read_evaluation(run.stage("evaluate"))
    judges = {"gold": "the simulated utility", "proxy": "the rewards it was trained on"}
    for row in evaluation.win_rates:
        if row.model == stage:
            rate = _interval(row.rate, row.low, row.high)
            names = {"base": "the pretrained model", "sft": "the model after SFT", "start": "the round before"}
            against = names.get(row.against, row.against)
            judge = judges.get(row.judge, row.judge)
            lines.append(f"- preferred over {against}, judged by {judge}: {rate} of {row.n} held-out prompts")
    if stage == "policy" and evaluation.kl is not None:
        lines.append(f"- KL from the start of alignment: {evaluation.kl.value:.2f} nats per answer")
    return "\n".join(lines)


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    return f"{value:.1%} [{low:.1%}, {high:.1%}]"
