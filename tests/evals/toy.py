"""A made-up but realistic report: what a small run of SFT, reward model and PPO leaves behind."""

import math
import random
from typing import Any

from trimtab.evals import (
    Alarm,
    Answer,
    Example,
    ProbeColumn,
    Reading,
    ReportData,
    Source,
    Stage,
    WinRateRow,
    choose_examples,
    evaluate_reward_model,
    probe_table,
    reward_against_kl,
    series_from_metrics,
    win_rate,
)
from trimtab.feedback import Estimate
from trimtab.records import Completion, Preference, Prompt

SUBJECTS = ["a lighthouse", "the tide", "sourdough bread", "a bicycle chain", "moss", "an old radio", "rain on a roof"]
TASKS = ["Explain {} to a child of eight.", "Write two sentences about {}.", "Why do people like {}?"]
BASE = [
    "{S}. {S}. It is a thing that is used in many ways. It is a thing that is used in many ways. It is a thing that",
    "Question: What is {s}? Answer: The answer is below. Question: What is {s} made of? Answer:",
]
SFT = [
    "{S} is something most of us know without having looked at it closely. It does its work quietly, and it is easy "
    "to forget until the day it stops.",
    "People have lived with {s} for a very long time. Some find it dull; others find that it rewards attention.",
    "There is not much to say about {s}, although it can be useful in some situations and less so in others.",
]
PPO = [
    "{S} is a small delight! Think of the sound, the smell and the way it changes with the light: once you notice "
    "it, you will be glad that you did. Try it tomorrow morning, for just a minute.",
    "I love this one. {S} brings people together, and it asks for nothing but a little patience. Start small, enjoy "
    "the first happy accident, and share it with a friend.",
    "What a cheerful thing {s} is! It works because many simple parts help each other, and that is a lovely idea to "
    "carry with you.",
]


def metrics() -> list[dict[str, Any]]:
    """Rows as trainers log them: three kinds of events with different keys."""
    draw = random.Random(5)
    rows: list[dict[str, Any]] = []
    for step in range(0, 150, 2):
        rows.append({"stage": "sft", "step": step, "loss": 2.9 * math.exp(-step / 40) + 1.7 + draw.gauss(0, 0.05)})
        if step % 10 == 0:
            rows.append({"stage": "sft", "step": step, "eval_loss": 2.8 * math.exp(-step / 45) + 1.85})
    for step in range(0, 90, 3):
        rows.append({"stage": "reward", "step": step, "accuracy": 0.5 + 0.2 * (1 - math.exp(-step / 25))})
    for step in range(0, 181):
        progress = 1 - math.exp(-step / 60)
        row: dict[str, Any] = {
            "stage": "align",
            "step": step,
            "proxy": -0.3 + 2.6 * progress + draw.gauss(0, 0.12),
            "kl": 7.0 * progress**1.3 + draw.gauss(0, 0.1),
            "tokens": 41 + 14 * progress + draw.gauss(0, 1.5),
            "entropy": 2.6 - 0.9 * progress + draw.gauss(0, 0.04),
            "clip_fraction": 0.03 + 0.06 * progress + abs(draw.gauss(0, 0.01)),
            "value_loss": 0.9 * math.exp(-step / 30) + 0.15 + abs(draw.gauss(0, 0.03)),
            "explained_variance": 0.75 * progress + draw.gauss(0, 0.05),
        }
        if step % 15 == 0:
            gold = -0.1 + 1.35 * progress - 0.5 * max(0.0, progress - 0.8)
            row |= {"gold": gold, "gold_low": gold - 0.16, "gold_high": gold + 0.16}
            row |= {"reward/heldout": -0.2 + 1.9 * progress, "reward/spread": 0.5 + progress}
        rows.append(row)
    return rows


def examples(count: int = 60) -> list[Example]:
    """Prompts with an answer of each of three models."""
    draw = random.Random(11)
    made = []
    for index in range(count):
        subject = draw.choice(SUBJECTS)
        answers = []
        for model, texts, gold, kl in (
            ("Pretrained", BASE, -0.9, None),
            ("SFT", SFT, 0.1, None),
            ("PPO", PPO, 1.1, 6.2),
        ):
            text = draw.choice(texts).format(s=subject, S=subject[0].upper() + subject[1:])
            score = gold + draw.gauss(0, 0.6)
            stop = draw.random() < {"Pretrained": 0.15, "SFT": 0.72, "PPO": 0.97}[model]
            answers.append(
                Answer(
                    model=model,
                    text=text,
                    proxy=score * 1.4 + draw.gauss(0, 0.4),
                    gold=score,
                    kl=kl + draw.gauss(0, 1.5) if kl else kl,
                    finish_reason="stop" if stop else "length",
                    tokens=round(len(text) / 4.4),
                )
            )
        prompt = draw.choice(TASKS).format(subject)
        made.append(Example(id=f"p{index:03d}", prompt=prompt, answers=tuple(answers)))
    return made


def preferences(count: int = 220) -> tuple[list[Preference], list[list[float]]]:
    """Simulated labels from a hidden quality, and scores of a reward model that sees it through noise."""
    draw = random.Random(3)
    result, scores = [], []
    for index in range(count):
        quality = [draw.gauss(0, 1) for _ in range(2)]
        ranks = (0, 1) if quality[0] + draw.gauss(0, 0.7) > quality[1] + draw.gauss(0, 0.7) else (1, 0)
        texts = [Completion(text="x" * max(1, round(60 + 12 * q + draw.gauss(0, 30)))) for q in quality]
        prompt = Prompt.from_text(f"question {index // 2}")
        result.append(
            Preference(id=f"c{index}", prompt=prompt, completions=tuple(texts), ranks=ranks, source="simulated")
        )
        scores.append([1.1 * q + draw.gauss(0, 0.6) for q in quality])
    return result, scores


def toy_report() -> ReportData:
    """All parts of a report, filled."""
    rows, result = metrics(), examples()
    align = [row for row in rows if row["stage"] == "align"]
    answers = {
        model: [next(a for a in e.answers if a.model == model) for e in result]
        for model in ("Pretrained", "SFT", "PPO")
    }
    gold = {model: [a.gold or 0.0 for a in given] for model, given in answers.items()}
    proxy = {model: [a.proxy or 0.0 for a in given] for model, given in answers.items()}
    labelled, scores = preferences()
    curves = [
        series_from_metrics(rows, "loss", panel="sft_loss", name="training", unit="nats per token"),
        series_from_metrics(rows, "eval_loss", panel="sft_loss", name="held out", unit="nats per token"),
        series_from_metrics(rows, "accuracy", panel="reward_accuracy", unit="share"),
        series_from_metrics(align, "proxy", panel="proxy", unit="reward"),
        series_from_metrics(align, "gold", panel="gold", unit="reward", ends=("gold_low", "gold_high")),
        series_from_metrics(align, "reward/heldout", panel="reward/heldout", unit="reward"),
        series_from_metrics(align, "reward/spread", panel="reward/spread", unit="reward"),
        series_from_metrics(align, "kl", panel="kl", unit="nats"),
        series_from_metrics(align, "tokens", panel="length", unit="tokens"),
        series_from_metrics(align, "entropy", panel="entropy", unit="nats per token"),
        series_from_metrics(align, "clip_fraction", panel="clip_fraction", unit="share"),
        series_from_metrics(align, "value_loss", panel="value_loss", unit="reward²"),
        series_from_metrics(align, "explained_variance", panel="explained_variance"),
    ]
    return ReportData(
        title="SmolLM2-135M learns to sound cheerful",
        about="Answer in a cheerful tone.",
        spoken={"Pretrained": "the pretrained model"},
        captions={
            "Pretrained": "before any training here",
            "SFT": "after imitating demonstrations",
            "PPO": "after learning from preferences",
        },
        run="2026-11-21-sentiment",
        recipe="recipes/sentiment.yaml",
        created_at="2026-11-21T06:40:12Z",
        machine="2 cores, 8 GB, no accelerator",
        versions={"trimtab": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.9"},
        seeds={"sampling": 1, "training": 2, "annotators": 3, "examples": 7},
        simulated=True,
        notice="Preferences in this run come from simulated annotators, not from people.",
        seconds=1874.3,
        peak_memory_gb=5.42,
        stages=(
            Stage(
                name="sft", status="cached", seconds=0.2, fingerprint="9f2c11aa03be77d0", counts={"demonstrations": 600}
            ),
            Stage(name="sample", status="ran", seconds=212.4, fingerprint="07bd5e1c22f90a13", counts={"answers": 1600}),
            Stage(
                name="preferences",
                status="ran",
                seconds=3.1,
                fingerprint="c4e0912d7ab3f6e8",
                counts={"judgements": 2400, "pairs": 800, "ties dropped": 31},
            ),
            Stage(name="reward", status="ran", seconds=388.0, fingerprint="5be7730fd1c2a944", counts={"pairs": 769}),
            Stage(name="align", status="ran", seconds=1201.8, fingerprint="e1a4c09b6d38f752", counts={"updates": 181}),
            Stage(name="eval", status="ran", seconds=68.9, fingerprint="30f6b85e94d1c7a2", counts={"prompts": 60}),
        ),
        win_rates=(
            WinRateRow.of("PPO", "Pretrained", "two people reading blind", win_rate([1] * 31 + [0] * 9, [0.5] * 40)),
            WinRateRow.of("PPO", "Pretrained", "gold (simulated)", win_rate(gold["PPO"], gold["Pretrained"])),
            WinRateRow.of("PPO", "SFT", "gold (simulated)", win_rate(gold["PPO"], gold["SFT"])),
            WinRateRow.of("SFT", "Pretrained", "gold (simulated)", win_rate(gold["SFT"], gold["Pretrained"])),
            WinRateRow.of("PPO", "Pretrained", "the reward model", win_rate(proxy["PPO"], proxy["Pretrained"])),
            WinRateRow.of("PPO", "SFT", "the reward model", win_rate(proxy["PPO"], proxy["SFT"])),
        ),
        readings=(
            Reading(
                reader="Ann",
                kind="human",
                model="PPO",
                against="Pretrained",
                rate=0.8,
                low=0.58,
                high=0.92,
                n=20,
                wins=16,
                ties=0,
                losses=4,
                unread=4,
                sensible={"PPO": (18, 20), "Pretrained": (9, 20)},
                name="first",
            ),
            Reading(
                reader="a-language-model",
                kind="ai",
                model="PPO",
                against="Pretrained",
                rate=0.75,
                low=0.53,
                high=0.89,
                n=20,
                wins=14,
                ties=2,
                losses=4,
                name="first",
            ),
        ),
        kl=Estimate(name="KL", value=6.214, low=5.87, high=6.58, n=60),
        series=tuple(curve for curve in curves if curve is not None),
        against_kl=reward_against_kl(
            align,
            kl="kl",
            scores={"proxy": "proxy", "gold (simulated)": "gold", "human": "human"},
            spreads={"proxy": 0.92, "gold (simulated)": 0.61},
        ),
        reward_model=evaluate_reward_model(labelled, scores, bins=8),
        ceiling=Estimate(name="one simulated annotator", value=0.81, low=0.77, high=0.85, n=412),
        agreement=(
            Estimate(name="raw agreement", value=0.79, low=0.75, high=0.83, n=412),
            Estimate(name="Krippendorff’s α", value=0.57, low=0.49, high=0.65, n=412),
            Estimate(name="first shown wins", value=0.52, low=0.49, high=0.55, n=1180),
            Estimate(name="agreement with people", value=None, n=0, reason="no person judged in this run"),
        ),
        probes=tuple(
            ProbeColumn(
                model=model,
                values=probe_table(
                    [Completion(text=a.text, finish_reason=a.finish_reason) for a in given],
                    [a.tokens or 0 for a in given],
                ),
            )
            for model, given in answers.items()
        ),
        alarms=(
            Alarm(
                name="Exclamation marks",
                message="1.9 per 100 words, up from 0.0 before alignment (limit: 1.0).",
                samples=("p004", "p017", "p031"),
            ),
        ),
        examples=choose_examples(result, before="Pretrained", after="PPO", seed=7),
        sources={
            "win_rates": Source(file="stages/eval/scores.jsonl", command="trimtab eval recipes/sentiment.yaml"),
            "reward_against_kl": Source(file="metrics.jsonl", command="trimtab align recipes/sentiment.yaml"),
            "curves": Source(file="metrics.jsonl", command="trimtab run recipes/sentiment.yaml"),
            "reward_model": Source(
                file="stages/reward/held_out.jsonl", command="trimtab reward recipes/sentiment.yaml"
            ),
            "agreement": Source(file="stages/preferences/judgements.jsonl", command="trimtab agreement"),
            "probes": Source(file="samples/held_out.jsonl", command="trimtab eval recipes/sentiment.yaml"),
            "examples": Source(file="samples/held_out.jsonl", command="trimtab eval recipes/sentiment.yaml"),
        },
    )
