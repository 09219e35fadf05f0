"""Judging pairs with and without shared beginnings: ``python -m benchmarks.judging``.

The local judge (:class:`trimtab.pipeline.judging.LocalAsk`, as ``trimtab judge`` uses it) is asked about ``--pairs``
invented pairs in both orders, one drawn principle each. The other way, each question in a forward pass of its own
(batch 1, vocabulary projected at the last position only, both options read from one pass), is timed on a random sample
of ``--separate`` pairs and scaled to all; its questions are put between the judge's forward passes, so both meet the
same machine. Tokenising counts for both. The largest difference of the options' log-probabilities on the sample must
be below 1e-4. Answers are as long as those the recipes sample (about 40 tokens); ``--words`` makes them longer, which
shares less.
"""

import argparse
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.machine import machine, versions
from benchmarks.tables import replace_table
from trimtab import fast_cpu
from trimtab.constitution import load_constitution
from trimtab.feedback import JudgeConfig, Question, Reply
from trimtab.feedback.judge import questions_of
from trimtab.files import write_json
from trimtab.models import Backbone, ModelConfig
from trimtab.pipeline.judging import LocalAsk
from trimtab.records import Comparison, Prompt

WORDS = (
    "a bowl of warm soup and bread makes the evening easy when rain keeps you at home with a book you can cook it "
    "slowly add salt late taste often let it rest before you serve fresh herbs help too"
).split()


def invented(pairs: int, words: int) -> list[list[Question]]:
    """Both questions about each pair."""
    draw, constitution = random.Random(0), load_constitution("default")

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=words)).capitalize() + "."

    questions = [Prompt.from_text(f"What do you say to {draw.choice(WORDS)} number {n}?") for n in range(pairs)]
    return [
        questions_of(Comparison.of(p, [text(), text()]), constitution, JudgeConfig(), "benchmark") for p in questions
    ]


@torch.no_grad()
def separately(backbone: Backbone, question: Question) -> list[float]:
    """The plain way: log-probabilities of the options, normalised over them, by a forward pass for one question."""
    tokens = torch.tensor([backbone.chat.prompt(question.messages)], device=backbone.device)
    last = backbone.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0, -1]
    options = [backbone.chat.tokenizer.encode(o, add_special_tokens=False)[0] for o in question.options]
    return backbone.head(last).float().log_softmax(-1)[options].double().log_softmax(0).tolist()


class Clock:
    """Wall and processor seconds between starts and stops."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def start(self) -> None:
        """Go."""
        self.wall -= time.perf_counter()
        self.cpu -= time.process_time()

    def stop(self) -> None:
        """Stop."""
        self.wall += time.perf_counter()
        self.cpu += time.process_time()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; exit code 1 if the numbers differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--separate", type=int, default=20)
    parser.add_argument("--words", type=int, default=36)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/judging.json"))
    parser.add_argument("--docs", type=Path, help="page whose table is replaced, docs/explanation/judges.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    fast_cpu.install()
    backbone = Backbone.load(ModelConfig(name=options.model, context=2048))
    pairs = invented(options.pairs, options.words)
    everything = [q for both in pairs for q in both]
    sample = [q for both in random.Random(1).sample(pairs, min(options.separate, len(pairs))) for q in both]
    ask, before = LocalAsk(backbone, options.model), machine()
    ask(everything[:2], lambda replies: None)
    separately(backbone, everything[0])  # both warm
    shared, plain = Clock(), Clock()
    replies: dict[str, Reply] = {}
    single: dict[str, list[float]] = {}

    def keep(found: Mapping[str, Reply]) -> None:
        shared.stop()
        replies.update(found)
        while len(single) * len(everything) < len(sample) * len(replies):
            question = sample[len(single)]
            plain.start()
            single[question.key] = separately(backbone, question)
            plain.stop()
        shared.start()

    shared.start()
    ask(everything, keep)
    shared.stop()
    together = {key: torch.tensor(replies[key].probabilities).double().log().tolist() for key in single}
    difference = max(abs(x - y) for key, one in single.items() for x, y in zip(one, together[key], strict=True))
    count, scale = len(everything), len(everything) / len(sample)
    result = {
        "machine": before,
        "versions": versions(),
        "pairs": len(pairs),
        "separate_pairs": len(sample) // 2,
        "tokens_per_question": sum(r.tokens_in for r in replies.values()) / count,
        "threads": options.threads,
        "shared": {"wall": shared.wall, "processor": shared.cpu},
        "separate_scaled": {"wall": plain.wall * scale, "processor": plain.cpu * scale},
        "speedup": {"wall": plain.wall * scale / shared.wall, "processor": plain.cpu * scale / shared.cpu},
        "largest_difference": difference,
    }
    lines = [
        "| way | wall time | processor time |",
        "|---|---|---|",
        f"| shared, all {len(pairs)} pairs ({count} questions of {result['tokens_per_question']:.0f} tokens) | "
        f"{shared.wall:.0f} s | {shared.cpu:.0f} s |",
        f"| each question alone ({len(sample) // 2} random pairs, scaled to all) | {plain.wall * scale:.0f} s | "
        f"{plain.cpu * scale:.0f} s |",
        f"| ratio | {plain.wall * scale / shared.wall:.2f} | {plain.cpu * scale / shared.cpu:.2f} |",
        "",
        f"{options.model}, {options.threads} threads, load average before the start {before['load_before']:g}; largest "
        f"difference {difference:.1e}.",
    ]
    print(*lines, sep="\n")
    write_json(options.out, result)
    if options.docs is not None:
        replace_table(options.docs, "judging", lines)
    return 0 if difference < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
