"""Agreement of judges with people on public data: ``python -m benchmarks.judge_agreement``.

LLMFAO (Ustalov, CC BY 4.0): crowd votes, and the votes of GPT-4 and GPT-3.5 that come with it. LLMBar (Zeng et
al., MIT): pairs with a constructed or agreed label. The local model judges a stated random part of each
(all of it with ``--pairs 0``), drawn from the pairs whose answers have together at most ``--longest`` characters
(0: no limit); their number is printed. Given votes go through the same report. A second run continues where the first
was stopped. No text is printed.
"""

import argparse
import csv
import gzip
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine, versions
from benchmarks.tables import replace_table
from trimtab.constitution import load_constitution
from trimtab.feedback import Estimate, JudgeConfig, agreement_report
from trimtab.feedback.judge_report import against_people, shown
from trimtab.files import write_json
from trimtab.models import ModelConfig
from trimtab.pipeline.judging import LocalJudge, judge_items, plain
from trimtab.pipeline.ui import Ui
from trimtab.records import Comparison, Judgement, Prompt

PLACES = {"left": (0, 1), "right": (1, 0), "tie": (0, 0)}


def rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a gzipped JSONL or CSV file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return list(csv.DictReader(file)) if ".csv" in path.suffixes else [json.loads(line) for line in file]


def llmfao(folder: Path) -> tuple[list[Comparison], list[Judgement], dict[str, list[Judgement]]]:
    """Items, the crowd's judgements, and the given judges' judgements by name."""
    items, known = [], {}
    for row in rows(folder / "pairs.jsonl.gz"):
        prompt = Prompt(id=f"llmfao-{row['prompt']}", messages=Prompt.from_text(row["text"]).messages)
        item = Comparison.of(prompt, [row["result_x"], row["result_y"]])
        item = item.model_copy(update={"id": f"llmfao-{row['id']}"})
        items.append(item)
        known[str(row["id"])] = item

    def votes(name: str, worker: str | None, source: Any) -> list[Judgement]:
        return [
            Judgement(
                id=f"{name}-{n}",
                item=known[row["id"]].id,
                annotator=f"worker-{row['worker']}" if worker else name,
                source=source,
                shown_order=(0, 1),
                ranks=PLACES[row["winner"]],
            )
            for n, row in enumerate(rows(folder / f"{name}.csv.gz"))
            if row["id"] in known
        ]

    crowd = votes("crowd-comparisons", "worker", "human")
    return items, crowd, {name: votes(name, None, "ai") for name in ("gpt4-judge", "gpt3-judge")}


def llmbar(path: Path) -> tuple[list[Comparison], list[Judgement], dict[str, str]]:
    """Items, the given label as a judgement, and the subset of each item."""
    items, labels, subsets = [], [], {}
    for n, row in enumerate(rows(path)):
        item = Comparison.of(Prompt.from_text(row["input"]), [row["output_1"], row["output_2"]])
        if item.id in subsets:
            continue
        subsets[item.id] = row["subset"]
        items.append(item)
        ranks = (0, 1) if row["label"] == 1 else (1, 0)
        labels.append(
            Judgement(
                id=f"llmbar-{n}", item=item.id, annotator="label", source="human", shown_order=(0, 1), ranks=ranks
            )
        )
    return items, labels, subsets


def table(result: dict[str, Any]) -> list[str]:
    """What the local model's judgements came to, a row for each set."""
    lines = [
        "| set | pairs | agrees with people, by which way it leans | the longer answer would | both name a winner and "
        "agree | shown first wins | orders contradict |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ("llmfao", "llmbar"):
        if name not in result:
            continue
        outcome, run = result[name]["people"], result[name]["run"]
        shares = [outcome["lean"], outcome["longest"], outcome["accuracy"], run["position_bias"], run["flip_rate"]]
        cells = [shown(Estimate(**share)) for share in shares]
        drawn = f"{result[name]['pairs_drawn']} of {result[name]['pairs_drawn_from']}"
        lines.append(f"| {name} ({result[name]['pairs_in_all']}) | {drawn} | {' | '.join(cells)} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/pairwise"))
    parser.add_argument("--pairs", type=int, default=300, help="of each set, drawn at random; 0: all")
    parser.add_argument("--longest", type=int, default=0, help="characters of both answers of a pair; 0: any")
    parser.add_argument("--docs", type=Path, help="page whose table is replaced, docs/explanation/judges.md")
    parser.add_argument("--set", choices=["llmfao", "llmbar", "given"], action="append", dest="sets")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=Path("runs/judge-agreement"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    chosen, ui = options.sets or ["given", "llmfao", "llmbar"], Ui()
    result: dict[str, Any] = {"machine": machine(), "versions": versions(), "pairs": options.pairs}
    result["longest"] = options.longest

    def local(name: str, items: list[Comparison], people: list[Judgement]) -> None:
        short = [i for i in items if not options.longest or sum(len(c.text) for c in i.completions) <= options.longest]
        random.Random(0).shuffle(short)
        part = short[: options.pairs or None]  # a larger part contains every smaller one
        drawn = f"{len(part)} drawn from the {len(short)} of {len(items)} pairs that are not too long"
        ui.say(f"{name}: {drawn if options.longest else f'{len(part)} of {len(items)} pairs'}")
        judge_items(
            part, load_constitution("default"), {"smollm2-135m": LocalJudge()}, JudgeConfig(), options.out / name,
            default=ModelConfig(context=options.context), ui=ui, people=people,
        )  # fmt: skip
        result[name] = json.loads((options.out / name / "judge.json").read_text())["judges"]["smollm2-135m"]
        result[name] |= {"pairs_drawn": len(part), "pairs_drawn_from": len(short), "pairs_in_all": len(items)}

    items, crowd, given = llmfao(options.data / "llmfao")
    if "given" in chosen:
        ceiling = agreement_report(items, crowd)
        result["crowd"] = plain(ceiling)
        ui.say(f"crowd: {len(crowd)} votes, one against the others {ceiling['leave_one_out'].value:.3f}")
        for name, votes in given.items():
            outcome = against_people(items, votes, crowd)
            bias = agreement_report(items, votes)["first_shown_wins"]
            result[name] = plain(
                {**plain(outcome), "first_shown_wins": bias, "votes": Counter(map(str, (v.ranks for v in votes)))}
            )
            for key in ("accuracy", "agreement", "kappa", "longest"):
                e = getattr(outcome, key)
                ui.say(f"  {name} {key}: {e.value:.3f} [{e.low:.3f}, {e.high:.3f}] of {e.n}")
            ui.say(f"  {name} left wins: {bias.value:.3f} [{bias.low:.3f}, {bias.high:.3f}]")
    if "llmfao" in chosen:
        local("llmfao", items, crowd)
    if "llmbar" in chosen:
        bar, labels, _ = llmbar(options.data / "llmbar-processed.jsonl.gz")
        local("llmbar", bar, labels)
    write_json(options.out / "agreement.json", result)
    if options.docs is not None:
        replace_table(options.docs, "agreement", table(result))
    ui.say(f"written to {options.out / 'agreement.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
