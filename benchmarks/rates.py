"""Which learning rates are safe: ``python -m benchmarks.rates [FILE] [--stage sft|reward|dpo]``.

Each cell trains a fresh model at one rate, adapters or all weights, and measures it on examples that were kept out and
on plain answers to plain questions (:data:`PLAIN`), which no stage teaches. A rate is safe where the held-out loss
falls and the plain answers stay as likely as they were.

FILE holds demonstrations for ``sft``, and preferences for ``reward`` and ``dpo`` (those of a run are in
``stages/preferences/preferences.jsonl``). The rates are multiples of the defaults in :mod:`trimtab.trainers.defaults`.
Results are written after every cell.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import softplus

from benchmarks.machine import machine, versions
from trimtab import fast_cpu
from trimtab.errors import DataError, TrimtabError
from trimtab.files import write_json
from trimtab.models import AdapterConfig, Backbone, Encoded, ModelConfig, Role, collate
from trimtab.records import Demonstration, Message, Preference, load
from trimtab.trainers import (
    DpoConfig,
    OptimizerConfig,
    Ranking,
    RewardConfig,
    SftConfig,
    answer_logprobs,
    encode_preferences,
    evaluate_preference,
    mean_nll,
    score_rankings,
    split_holdout,
    train_preference,
    train_reward,
    train_sft,
)
from trimtab.trainers.defaults import Kind, Stage, default_lr

DEMONSTRATIONS = Path(__file__).parents[1] / "recipes" / "data" / "questions-demonstrations.jsonl"
SEED = 0
STAGES: dict[str, Stage] = {"sft": "sft", "reward": "reward", "dpo": "preference"}
"""What can be swept, and whose default it is."""

PLAIN = [
    ("How many days are there in a week?", "There are seven days in a week, from Monday to Sunday."),
    ("What is water made of?", "Water is made of hydrogen and oxygen. Each molecule has two hydrogen atoms."),
    ("Why do leaves look green?", "Leaves contain chlorophyll, which reflects green light."),
    ("What does a thermometer measure?", "A thermometer measures temperature, usually in degrees."),
    ("Where does the sun rise?", "The sun rises in the east and sets in the west."),
    ("What is a noun?", "A noun is a word that names a person, a place, a thing or an idea."),
    ("How is bread made?", "Bread is made from flour, water, salt and yeast. The dough rises and is baked."),
    ("What is the capital of France?", "The capital of France is Paris, which lies on the river Seine."),
    ("Why does ice float?", "Ice floats because it is less dense than liquid water."),
    ("What is half of eighteen?", "Half of eighteen is nine, because nine plus nine is eighteen."),
    ("What do bees make?", "Bees make honey and wax. They collect nectar and store it in the hive."),
    ("What is a map for?", "A map shows where places are, so that you can find your way."),
]
"""Questions with answers that a model should still find likely after any training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One training run and what came of it."""

    stage: str
    """``sft``, ``reward`` or ``dpo``."""
    kind: Kind
    """What was trained."""
    lr: float
    """Peak learning rate."""
    factor: float
    """The rate over its default."""
    updates: int = 0
    """Optimiser steps."""
    loss_before: float | None = None
    """On examples kept out; nats per token for ``sft``, of a pair otherwise."""
    loss: float | None = None
    """The same after training."""
    accuracy: float | None = None
    """Share of pairs kept out that are ordered rightly."""
    plain_before: float | None = None
    """Nats per token of the plain answers."""
    plain: float | None = None
    """The same after training."""
    plain_kl: float | None = None
    """KL(trained‖start) over the whole vocabulary at the plain answers, nats per token."""
    seconds: float = 0.0
    """Training alone."""
    error: str | None = None
    """Why the cell failed."""


def measure(cell: Cell, model: ModelConfig, data: Path, *, limit: int, epochs: float, batch: int) -> Cell:
    """Train and measure one cell."""
    backbone = Backbone.load(model)
    adapter = AdapterConfig(kind=cell.kind)
    scalar = cell.stage == "reward"
    role = Role.trainable(backbone, cell.stage, adapter, seed=SEED, scalar_head=scalar)
    optimizer = OptimizerConfig(lr=cell.lr)
    plain = [backbone.chat.conversation(_turns(question, answer)) for question, answer in PLAIN]
    start, before = _distributions(role, plain), mean_nll(role, plain)
    settings = {"adapter": adapter, "optimizer": optimizer, "epochs": epochs, "batch": batch}
    if cell.stage == "sft":
        records = load(data, kind=Demonstration, limit=limit).records
        encoded = [backbone.chat.conversation(r.messages) for r in records]
        train, held = _split([r.id for r in records])
        unseen = [encoded[i] for i in held]
        loss_before = mean_nll(role, unseen)
        began = time.perf_counter()
        train_sft(role, [encoded[i] for i in train], SftConfig(**settings), seed=SEED)
        cell = replace(cell, loss_before=loss_before, loss=mean_nll(role, unseen), seconds=time.perf_counter() - began)
    else:
        records = list(load(data, kind=Preference, limit=limit).records)
        rankings, preferences, _ = encode_preferences(backbone.chat, records)
        train, held = _split([p.prompt.id for p in preferences])
        ours, unseen = [rankings[i] for i in train], [rankings[i] for i in held]
        began = time.perf_counter()
        if cell.stage == "reward":
            train_reward(role, ours, RewardConfig(**settings), seed=SEED)
            loss, accuracy = _ordering(role, unseen)
            cell = replace(cell, loss_before=0.6931, loss=loss, accuracy=accuracy)
        else:
            config, reference = DpoConfig(**settings), Role(backbone)
            known, unseen_known = answer_logprobs(reference, ours), answer_logprobs(reference, unseen)
            train_preference(role, ours, config, reference=known, seed=SEED)
            result = evaluate_preference(role, unseen, config, reference=unseen_known)
            cell = replace(cell, loss_before=0.6931, loss=result["loss"], accuracy=result["accuracy"])
        cell = replace(cell, seconds=time.perf_counter() - began)
    cell = replace(cell, updates=round(-(-len(train) // batch) * epochs))
    if scalar:
        return cell
    kl = _kl(_distributions(role, plain), start)
    return replace(cell, plain_before=before, plain=mean_nll(role, plain), plain_kl=kl)


def _turns(question: str, answer: str) -> list[Message]:
    return [Message(role="user", content=question), Message(role="assistant", content=answer)]


def _split(ids: Sequence[str]) -> tuple[list[int], list[int]]:
    train, held = split_holdout(ids, 0.2, SEED)
    if not train or not held:
        raise DataError(f"{len(ids)} examples cannot be split into training and held-out ones; give at least 10")
    return train, held


@torch.no_grad()
def _distributions(role: Role, examples: Sequence[Encoded]) -> Tensor:
    """Log-probabilities of the whole vocabulary at every answer's token, ``[tokens, vocabulary]``."""
    batch = collate([e.tokens for e in examples], [e.response_mask for e in examples], role.backbone.device)
    predicting = role.hidden(batch)[:, :-1][batch.response_mask[:, 1:]]
    return torch.log_softmax(role.backbone.head(predicting).float(), dim=-1)


def _kl(trained: Tensor, start: Tensor) -> float:
    return float((trained.exp() * (trained - start)).sum(dim=-1).mean())


def _ordering(role: Role, rankings: Sequence[Ranking]) -> tuple[float, float]:
    """Mean Bradley–Terry loss and accuracy over all strict pairs."""
    margins = [
        scores[better] - scores[worse]
        for ranking, scores in zip(rankings, score_rankings(role, rankings), strict=True)
        for better, worse in ranking.pairs().tolist()
    ]
    gaps = torch.tensor(margins)
    return float(softplus(-gaps).mean()), float((gaps > 0).float().mean())


def table(cells: Sequence[Cell]) -> Table:
    """The cells as a person reads them; ``*`` marks the default rate."""
    shown = Table()
    for name in (
        "stage",
        "trained",
        "rate",
        "updates",
        "held-out loss",
        "accuracy",
        "plain NLL",
        "plain KL",
        "seconds",
    ):
        shown.add_column(name, justify="left" if name in ("stage", "trained") else "right")
    for c in cells:
        rate = f"{c.lr:g}{' *' if c.factor == 1 else ''}"
        if c.error is not None:
            shown.add_row(c.stage, c.kind, rate, "", c.error)
            continue
        shown.add_row(
            c.stage,
            c.kind,
            rate,
            str(c.updates),
            f"{c.loss_before:.3f} → {c.loss:.3f}",
            "" if c.accuracy is None else f"{c.accuracy:.1%}",
            "" if c.plain is None else f"{c.plain_before:.3f} → {c.plain:.3f}",
            "" if c.plain_kl is None else f"{c.plain_kl:.3f}",
            f"{c.seconds:.0f}",
        )
    return shown


def main(arguments: list[str] | None = None) -> int:
    """Measure all cells; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=DEMONSTRATIONS, help="demonstrations or preferences")
    parser.add_argument("--stage", choices=STAGES, default="sft")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--kinds", nargs="+", choices=("lora", "full"), default=["lora", "full"])
    parser.add_argument("--factors", nargs="+", type=float, default=[0.33, 1, 3, 10, 30], help="of the default rate")
    parser.add_argument("--limit", type=int, default=160, help="rows of the file; a fifth of them is kept out")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", type=Path, default=Path("runs/rates.json"), help="where results are written")
    options = parser.parse_args(arguments)
    fast_cpu.install()
    model = ModelConfig(name=options.model, context=options.context)
    console = Console(width=None if sys.stdout.isatty() else 120)
    cells: list[Cell] = []
    try:
        width = Backbone.load(model).width
        for kind in options.kinds:
            for factor in options.factors:
                lr = factor * default_lr(STAGES[options.stage], kind, width)
                cell = Cell(stage=options.stage, kind=kind, lr=lr, factor=factor)
                try:
                    cell = measure(
                        cell, model, options.data, limit=options.limit, epochs=options.epochs, batch=options.batch
                    )
                except DataError:
                    raise
                except TrimtabError as error:  # a rate so high that numbers stop being finite is a result
                    cell = replace(cell, error=str(error).splitlines()[0])
                cells.append(cell)
                report = {"machine": machine(), "versions": versions(), "data": options.data.name}
                settings = {"model": options.model, "limit": options.limit, "epochs": options.epochs}
                write_json(options.json, report | settings | {"cells": [asdict(c) for c in cells]})
                outcome = cell.error or f"held-out loss {cell.loss:.3f}, {cell.seconds:.0f} s"
                console.print(f"{cell.stage}, {cell.kind}, {cell.lr:g}: {outcome}", highlight=False)
    except TrimtabError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    console.print(table(cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
