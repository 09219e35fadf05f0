"""The other side of :mod:`benchmarks.peers`: TRL's own trainers, or Hugging Face ``generate``, a step at a time.

Runs in an environment of its own that knows nothing of trimtab. It reads what to do as one line of JSON, builds the
trainer, says that it is ready, and takes one step per further line. The trainers are TRL's, set as favourably as they
can be on a processor: no gradient checkpointing, float32, no reports, no data loader processes, the fused AdamW.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    TrainerCallback,
)

from benchmarks.channel import Channel, Stop
from benchmarks.machine import peak_mib
from benchmarks.workloads import SEED

ENDLESS = 1_000_000
"""Steps that are planned; the other end of the pipe says when it is enough."""


class Gate(TrainerCallback):
    """Lets one step pass at a time and reports what it took."""

    def __init__(self, channel: Channel, before: Callable[[dict[str, Any]], None]) -> None:
        self.channel, self.before = channel, before
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self.started = self.cpu_started = 0.0
        self.logged: dict[str, Any] = {}

    def wait(self) -> None:
        """Until the next step is asked for."""
        self.before(self.channel.wait())
        self.started, self.cpu_started = time.perf_counter(), time.process_time()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Everything is set up."""
        self.channel.send({"ready": True, "loaded_mib": peak_mib(), "versions": versions()})
        self.wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step has ended; the trainer logs what it was afterwards."""
        self.seconds = time.perf_counter() - self.started
        self.cpu_seconds = time.process_time() - self.cpu_started
        if "loss/policy_avg" in self.logged:  # PPO logs first
            self.report()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """The step's loss and gradient norm."""
        self.logged = dict(logs or {})
        if "loss/policy_avg" not in self.logged:
            self.report()

    def report(self) -> None:
        """Say what the step took; wait for the next."""
        keys = ("loss", "grad_norm", "reward", "loss/policy_avg", "loss/value_avg")
        metrics = {key: float(self.logged[key]) for key in keys if key in self.logged}
        took = {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
        self.channel.send(took | {"metrics": metrics, "peak_mib": peak_mib()})
        self.logged = {}
        self.wait()


def versions() -> dict[str, str]:
    """What this side is."""
    return {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}


def arguments(job: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What all trainers are told."""
    return {
        "output_dir": tempfile.mkdtemp(dir=job["scratch"]),
        "use_cpu": True,
        "bf16": False,
        "fp16": False,
        "gradient_checkpointing": False,
        "max_steps": ENDLESS,
        "learning_rate": 1e-7,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "seed": SEED,
    } | more


def lora(job: dict[str, Any], model: Any, **more: Any) -> LoraConfig | None:
    """The same adapters as the other side has; None: all weights are trained."""
    if job["workload"]["adapter"] == "full":
        return None
    names = {
        path.rpartition(".")[2]
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in f".{path}"
    }
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=sorted(names), bias="none", **more)


def seeded_adapters(module: Any, seed: int) -> None:
    """Adapters that a trainer makes start at the same numbers as the other side's."""

    def made(model: Any, config: Any, **kwargs: Any) -> Any:
        torch.manual_seed(seed)
        return get_peft_model(model, config, **kwargs)

    module.get_peft_model = made


def causal(job: dict[str, Any]) -> Any:
    """The model as published."""
    return AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="sdpa")


def scorer(job: dict[str, Any], seed: int | None) -> Any:
    """The model with a head for one number: the other side's first head, or zeros."""
    model = AutoModelForSequenceClassification.from_pretrained(
        job["model"], num_labels=1, dtype=torch.float32, attn_implementation="sdpa"
    )
    with torch.no_grad():
        width = model.score.weight.shape[1]
        if seed is None:
            model.score.weight.zero_()
        else:
            generator = torch.Generator().manual_seed(seed)
            model.score.weight.copy_(torch.randn(1, width, generator=generator) / (width + 1) ** 0.5)
    return model


def tokens(job: dict[str, Any], side: str) -> Any:
    """The tokenizer, with a padding token that is not the end of a turn."""
    result = AutoTokenizer.from_pretrained(job["model"], padding_side=side)
    if result.pad_token_id in (None, result.eos_token_id):
        result.pad_token = result.convert_ids_to_tokens(0)
    return result


def sft(job: dict[str, Any], batch: dict[str, Any], channel: Channel) -> None:
    rows = [
        {"input_ids": ids, "labels": [t if m else -100 for t, m in zip(ids, mask, strict=True)]}
        for ids, mask in zip(batch["tokens"], batch["masks"], strict=True)
    ]
    model = causal(job)
    module = sys.modules[trl.SFTTrainer.__module__]
    seeded_adapters(module, job["adapter_seed"])
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(**arguments(job, per_device_train_batch_size=len(rows), max_length=None)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokens(job, "right"),
        peft_config=lora(job, model, task_type="CAUSAL_LM"),
        callbacks=[Gate(channel, lambda _: None)],
    )
    trainer.train()


def reward(job: dict[str, Any], batch: dict[str, Any], channel: Channel) -> None:
    rows = [
        {"chosen_ids": p + c, "rejected_ids": p + r}
        for p, c, r in zip(batch["prompts"], batch["chosen"], batch["rejected"], strict=True)
    ]
    model = scorer(job, SEED)
    tokenizer = tokens(job, "right")
    model.config.pad_token_id = tokenizer.pad_token_id
    seeded_adapters(sys.modules[trl.RewardTrainer.__module__], job["adapter_seed"])
    config = {"per_device_train_batch_size": len(rows), "max_length": None}
    trainer = trl.RewardTrainer(
        model=model,
        args=trl.RewardConfig(**arguments(job, **config)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora(job, model, task_type="SEQ_CLS", modules_to_save=["score"]),
        callbacks=[Gate(channel, lambda _: None)],
    )
    trainer.train()


def dpo(job: dict[str, Any], batch: dict[str, Any], channel: Channel) -> None:
    class Tokenised(trl.DPOTrainer):
        """Takes the rows as the tokens they are."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    rows = [
        {"prompt": "", "chosen": "", "rejected": "", "prompt_ids": p, "chosen_ids": c, "rejected_ids": r}
        for p, c, r in zip(batch["prompts"], batch["chosen"], batch["rejected"], strict=True)
    ]
    model = causal(job)
    seeded_adapters(sys.modules[trl.DPOTrainer.__module__], job["adapter_seed"])
    config = {
        "per_device_train_batch_size": len(rows),
        "max_length": None,
        "beta": 0.1,
        "precompute_ref_log_probs": job["workload"]["cached"],
    }
    trainer = Tokenised(
        model=model,
        args=trl.DPOConfig(**arguments(job, **config)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokens(job, "right"),
        peft_config=lora(job, model, task_type="CAUSAL_LM"),
        callbacks=[Gate(channel, lambda _: None)],
    )
    trainer.train()


def group(job: dict[str, Any], batch: dict[str, Any], channel: Channel) -> None:
    """RLOO and GRPO. The first step may be given its answers, the others draw their own."""
    workload = job["workload"]
    given: dict[tuple[int, ...], list[list[int]]] = {}

    def before(order: dict[str, Any]) -> None:
        given.clear()
        for prompt, answer in order.get("answers", ()):
            given.setdefault(tuple(prompt), []).append(answer)

    trainer_class, config_class = {
        "rloo": (trl.RLOOTrainer, trl.RLOOConfig),
        "grpo": (trl.GRPOTrainer, trl.GRPOConfig),
    }[workload["kind"]]

    class Given(trainer_class):  # type: ignore[misc, valid-type]
        """Takes prompts as the tokens they are, and answers where there are some."""

        def _tokenize_prompts(self, prompts: list[str]) -> Any:
            return [batch["prompts"][int(p)] for p in prompts], None, {}

        def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
            if not given:
                return super()._generate_single_turn(prompt_ids, *args, **kwargs)
            super()._generate_single_turn(prompt_ids, *args, **kwargs)  # so that its first is not the one timed
            answers = [given[tuple(p)].pop(0) for p in prompt_ids]
            given.clear()
            return answers if workload["kind"] == "rloo" else (answers, None)

    model = causal(job)
    tokenizer = tokens(job, "left")
    ends = [model.config.vocab_size] if job["full_length"] else None  # a token that there is not
    seeded_adapters(sys.modules[trainer_class.__module__], job["adapter_seed"])
    config: dict[str, Any] = {
        "per_device_train_batch_size": job["micro_batch"],
        "gradient_accumulation_steps": workload["batch"] * workload["group"] // job["micro_batch"],
        "num_generations": workload["group"],
        "max_completion_length": workload["new_tokens"],
        "temperature": 1.0,
        "shuffle_dataset": False,
        "beta": job["beta"],
    }
    if workload["kind"] == "grpo":
        config |= {"loss_type": "grpo", "scale_rewards": "group"}
    if ends is not None:
        config["generation_kwargs"] = {"eos_token_id": ends}
    trainer = Given(
        model=model,
        reward_funcs=lambda completion_ids, **_: [rule(ids) for ids in completion_ids],
        args=config_class(**arguments(job, **config)),
        train_dataset=Dataset.from_list([{"prompt": str(i)} for i in range(len(batch["prompts"]))]),
        processing_class=tokenizer,
        peft_config=lora(job, model, task_type="CAUSAL_LM"),
        callbacks=[Gate(channel, before)],
    )
    if ends is not None:
        trainer.eos_token_ids = ends
    trainer.train()


def rule(ids: list[int]) -> float:
    """A reward that costs nothing and differs from answer to answer; the other side has the same."""
    return sum(ids) % 97 / 97


def ppo(job: dict[str, Any], batch: dict[str, Any], channel: Channel) -> None:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    workload = job["workload"]
    tokenizer = tokens(job, "left")
    config = {
        "per_device_train_batch_size": job["micro_batch"],
        "gradient_accumulation_steps": workload["batch"] // job["micro_batch"],
        "local_rollout_forward_batch_size": workload["batch"],
        "num_ppo_epochs": workload["epochs"],
        "num_mini_batches": 1,
        "total_episodes": workload["batch"] * 1000,
        "response_length": workload["new_tokens"],
        "stop_token": None if job["full_length"] else "eos",
        "temperature": 1.0,
        "num_sample_generations": 0,
        "max_steps": -1,
    }
    trainer = PPOTrainer(
        args=PPOConfig(**arguments(job, **config)),
        processing_class=tokenizer,
        model=causal(job),
        ref_model=causal(job),
        reward_model=scorer(job, SEED),
        value_model=scorer(job, None),
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in batch["prompts"]]),
        callbacks=[Gate(channel, lambda _: None)],
    )
    trainer.train()


@torch.no_grad()
def decode(job: dict[str, Any], batch: dict[str, Any], channel: Channel) -> None:
    """``generate`` on the left-padded batch, as TRL calls it."""
    workload = job["workload"]
    model = causal(job)
    config = lora(job, model, task_type="CAUSAL_LM")
    if config is not None:
        torch.manual_seed(job["adapter_seed"])
        model = get_peft_model(model, config)
    model.eval()
    tokenizer = tokens(job, "left")
    inputs = tokenizer.pad({"input_ids": batch["prompts"]}, return_tensors="pt")
    chosen = GenerationConfig(
        max_new_tokens=workload["new_tokens"],
        min_new_tokens=None,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=model.config.vocab_size if job["full_length"] else tokenizer.eos_token_id,
    )
    torch.manual_seed(SEED)
    channel.send({"ready": True, "loaded_mib": peak_mib(), "versions": versions()})
    while True:
        channel.wait()
        started, cpu = time.perf_counter(), time.process_time()
        result = model.generate(**inputs, generation_config=chosen)[:, inputs["input_ids"].shape[1] :]
        took = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
        made = int((result != tokenizer.pad_token_id).sum())
        channel.send(took | {"metrics": {"tokens": made}, "peak_mib": peak_mib()})


RUN = {"sft": sft, "reward": reward, "dpo": dpo, "rloo": group, "grpo": group, "ppo": ppo, "decode": decode}


def main() -> int:
    channel = Channel()
    try:
        job = channel.wait()
        torch.set_num_threads(job["threads"])
        transformers.logging.set_verbosity_error()
        batch = json.loads(Path(job["batch_file"]).read_text())
        RUN[job["workload"]["kind"]](job, batch, channel)
    except Stop:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
