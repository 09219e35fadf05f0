"""What guards reach on public data: ``python -m benchmarks.guards --data FOLDER --json guards.json``.

The folder holds OpenAI's moderation samples (MIT), XSTest prompts (CC BY 4.0), the harmful prompts of
refusal_direction (Apache-2.0) and ordinary prompts of several sources. No text is printed. Probes read the built-in
model; of the ordinary, harmful and moderation texts they read the first ``--tokens`` tokens, of disguised ones all.
The probes' layer is chosen on XSTest, its twins kept together, and for XSTest on the moderation samples. With
``--cache`` states are kept between runs, and parts that ``--json`` has are kept too.
"""

import argparse
import csv
import gzip
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.machine import machine, versions
from trimtab.files import write_json
from trimtab.guard.activations import layer_states, pooled_texts
from trimtab.guard.attacks import ATTACKS
from trimtab.guard.dataset import Example, attacked
from trimtab.guard.detector import FOLDS, Detector, Fitted, Prepared, fit_detector, prepare
from trimtab.guard.evaluation import onset_table
from trimtab.guard.normalise import View
from trimtab.guard.output import AnswerStates, fit_output
from trimtab.guard.scores import auroc, auroc_difference, folds_of, share, threshold_for, tpr_at
from trimtab.guard.training import Planted, answer_states, tokens_of
from trimtab.models import Backbone, ModelConfig
from trimtab.models.embedded import NAME
from trimtab.records import Message, Prompt
from trimtab.rollout import LocalSampler, SamplerConfig

LAYERS = (6, 9, 12, 14, 16, 18, 20)
BUDGET = 0.01
BUDGETS = (0.01, 0.0025)
"""Shares of ordinary training prompts that may be blocked: results are given for both."""
PARTS = ("sources", "moderation", "xstest", "attacks", "onset", "overhead")


@dataclass(frozen=True)
class Row:
    """A text with its label and where it comes from."""

    text: str
    label: int
    source: str


def rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a gzipped JSONL or CSV file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return list(csv.DictReader(file)) if ".csv" in path.suffixes else [json.loads(line) for line in file]


def distinct(texts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text.strip()))


def read_sets(data: Path) -> dict[str, list[Row]]:
    """The sets by name."""
    sets = {
        "harmful": [Row(r["prompt"], 1, r["source"]) for r in rows(data / "safety/harmful-prompts.jsonl.gz")],
        "xstest": [
            Row(r["prompt"], int(r["label"] == "unsafe"), r["type"])
            for r in rows(data / "safety/xstest-prompts.csv.gz")
        ],
    }
    ordinary = {
        "self-instruct": [r["instruction"] for r in rows(data / "sft/self-instruct-seed-tasks.jsonl.gz")],
        "ifeval": [r["prompt"] for r in rows(data / "sft/ifeval-prompts.jsonl.gz")],
        "llmbar": [r["input"] for r in rows(data / "pairwise/llmbar-processed.jsonl.gz")],
        "mt-bench": [r["turns"][0] for r in rows(data / "sft/mt-bench-questions.jsonl.gz")],
        "oasst": [r["prompt"]["text"] for r in rows(data / "sft/oasst-en100-trees.jsonl.gz")],
    }
    other = {
        "truthfulqa": [r["question"] for r in rows(data / "honesty/truthfulqa-judge-truth.jsonl.gz")],
        "gsm8k": [r["question"] for r in rows(data / "sft/gsm8k-test-first600.jsonl.gz")],
    }
    sets["benign"] = _families(ordinary)
    sets["moderation"] = [
        Row(r["prompt"], int(any(v == 1 for k, v in r.items() if k != "prompt")), "moderation")
        for r in rows(data / "classifier/openai-moderation.jsonl.gz")
    ]
    known = {row.text for row in sets["benign"]}
    sets["other"] = [row for row in _families(other) if row.text not in known]
    return sets


def _families(texts: dict[str, list[str]]) -> list[Row]:
    return [Row(text, 0, family) for family, of_family in texts.items() for text in distinct(of_family)]


class States:
    """Pooled states of texts, computed once."""

    def __init__(self, backbone: Backbone, tokens: int, folder: Path | None) -> None:
        self.backbone, self.tokens, self.folder = backbone, tokens, folder
        self.known: dict[str, torch.Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")) if folder else ():
            self.known |= load_file(path)

    def cut(self, text: str) -> str:
        """The first tokens of a text."""
        tokenizer = self.backbone.chat.tokenizer
        return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][: self.tokens])

    def read(self, texts: Sequence[str], *, whole: bool = False) -> list[torch.Tensor]:
        """Pooled states of texts, or of their first tokens."""
        texts = texts if whole else [self.cut(text) for text in texts]
        keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24] for text in texts]
        missing = list({key: text for key, text in zip(keys, texts, strict=True) if key not in self.known}.items())
        for start in range(0, len(missing), 250):
            part = missing[start : start + 250]
            states = pooled_texts(self.backbone, [text for _, text in part], LAYERS, dtype=torch.float16)
            new = {key: tensor for (key, _), tensor in zip(part, states, strict=True)}
            self.known |= new
            if self.folder:
                self.folder.mkdir(parents=True, exist_ok=True)
                name = hashlib.sha256("".join(new).encode()).hexdigest()[:16]
                save_file(new, self.folder / f"{name}.safetensors")
            print(f"  states of {min(start + 250, len(missing))} of {len(missing)} texts", file=sys.stderr, flush=True)
        return [self.known[key] for key in keys]

    def whole(self, texts: Sequence[str]) -> list[torch.Tensor]:
        """Pooled states of whole texts."""
        return self.read(texts, whole=True)


def plain(texts: Sequence[str], states: States) -> list[Prepared]:
    """Texts with their raw view alone: nobody disguised them."""
    pooled = states.read(texts)
    return [Prepared((View("raw", text),), (s.numpy(),)) for text, s in zip(texts, pooled, strict=True)]


class Sets:
    """The sets with their states, read when they are first asked for."""

    def __init__(self, rows: dict[str, list[Row]], states: States) -> None:
        self.rows, self.states = rows, states
        self._read: dict[str, list[tuple[Prepared, Row]]] = {}

    def __call__(self, name: str) -> list[tuple[Prepared, Row]]:
        """Texts and rows of a set; those of the moderation set in their raw view alone."""
        if name not in self._read:
            texts = [row.text for row in self.rows[name]]
            prepared = plain(texts, self.states) if name == "moderation" else prepare(texts, self.states.read)
            self._read[name] = list(zip(prepared, self.rows[name], strict=True))
            print(f"{name}: {len(texts)} texts", file=sys.stderr, flush=True)
        return self._read[name]

    def columns(self, name: str) -> tuple[list[Prepared], list[Row]]:
        """The same as two lists."""
        return [text for text, _ in self(name)], [row for _, row in self(name)]


def pair_of(kind: str) -> str:
    """The name that a type of XSTest prompt shares with its contrasts, so that twins stay in one fold."""
    return next((name for name in ("privacy", "discr") if name in kind), kind.removeprefix("contrast_"))


def best_layer(texts: Sequence[Prepared], rows: Sequence[Row], groups: Sequence[Any]) -> tuple[int, dict[str, Any]]:
    """Index of the layer with the highest AUROC on these data, and the table."""
    fitted = fit_detector(texts, [r.label for r in rows], groups, budget=0.05)
    place = next(m.place for m in fitted.detector.members if m.place is not None)
    return place.layer, fitted.layer_scores


def estimate(blocked: Sequence[bool]) -> dict[str, Any]:
    shown = share(blocked)
    return {"blocked": int(sum(blocked)), "n": len(blocked), "value": shown.value, "low": shown.low, "high": shown.high}


def moderation(texts: Sequence[Prepared], sample: Sequence[Row], layer: int) -> dict[str, Any]:
    """Five folds: TF-IDF alone and the ensemble on the same texts."""
    labels = np.array([row.label for row in sample])
    fold = folds_of(range(len(sample)), 5)
    scores: dict[str, np.ndarray] = {name: np.zeros(len(sample)) for name in ("TF-IDF", "ensemble", "probe")}
    for f in range(5):
        train, test = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        fitted = fit_detector([texts[i] for i in train], labels[train].tolist(), train.tolist(), budget=BUDGET,
                              layer=layer, folds=4)  # fmt: skip
        held = [texts[i] for i in test]
        by_member = {m.name: np.array([z.max() for z in m.calibrated(held)]) for m in fitted.detector.members}
        scores["TF-IDF"][test] = by_member["lexical"]
        scores["probe"][test] = np.mean([z for name, z in by_member.items() if name != "lexical"], axis=0)
        scores["ensemble"][test] = fitted.detector.values(held)
    result: dict[str, Any] = {
        name: {"auroc": auroc(s.tolist(), labels.tolist()), "tpr_at_1": tpr_at(s.tolist(), labels.tolist())}
        for name, s in scores.items()
    }
    gain = auroc_difference(scores["ensemble"].tolist(), scores["TF-IDF"].tolist(), labels.tolist())
    result["gain"] = {"value": gain.value, "low": gain.low, "high": gain.high, "n": gain.n}
    return result


def train_on(
    harmful: Sequence[tuple[Prepared, Row]], benign: Sequence[tuple[Prepared, Row]], layer: int | None
) -> Fitted:
    """A detector from harmful and ordinary prompts; a source of harmful prompts or an ordinary text is a group."""
    pairs = [*harmful, *benign]
    groups = [row.source if row.label else f"{row.source} {i}" for i, (_, row) in enumerate(pairs)]
    if len({row.source for _, row in harmful}) < 3:
        groups = [f"{row.source} {i}" for i, (_, row) in enumerate(pairs)]
    return fit_detector([t for t, _ in pairs], [row.label for _, row in pairs], groups, budget=BUDGET, layer=layer)


def blocked_by(detector: Detector, texts: Sequence[Prepared]) -> list[bool]:
    return (detector.values(texts) > detector.threshold).tolist()


def sources(sets: Sets, layer: int) -> dict[str, Any]:
    """Each harmful source left out in turn; other benign families; TF-IDF, a member, beside the ensemble."""
    result: dict[str, Any] = {}
    for source in sorted({row.source for _, row in sets("harmful")}):
        rest = [pair for pair in sets("harmful") if pair[1].source != source]
        left = [text for text, row in sets("harmful") if row.source == source]
        other = [text for text, _ in sets("other")]
        fitted = train_on(rest, sets("benign"), layer)
        words = fitted.detector.members[0]
        scores = {
            "ensemble": [fitted.detector.values(texts) for texts in (left, other)],
            "TF-IDF": [np.array([z.max() for z in words.calibrated(texts)]) for texts in (left, other)],
        }
        ordinary = {"ensemble": fitted.out_of_fold, "TF-IDF": fitted.member_scores["lexical"]}
        result[source] = {"benign": len(sets("benign"))}
        for name, (harmful, benign) in scores.items():
            for budget in BUDGETS:
                limit = threshold_for(ordinary[name][len(rest) :].tolist(), budget)
                result[source][f"{name} {budget}"] = {
                    "blocked": estimate((harmful > limit).tolist()),
                    "other_refused": estimate((benign > limit).tolist()),
                }
        print(f"  {source}: {result[source]['ensemble 0.01']['blocked']['value']:.3f}", file=sys.stderr, flush=True)
    return result


def xstest(
    fitted: Fitted, trained_on: Sequence[Row], texts: Sequence[Prepared], sample: Sequence[Row]
) -> dict[str, Any]:
    """Zero-shot: trained on harmful and ordinary prompts of other sources."""
    scores = fitted.detector.values(texts)
    labels = [row.label for row in sample]
    ordinary = [score for score, row in zip(fitted.out_of_fold, trained_on, strict=True) if not row.label]
    result: dict[str, Any] = {"auroc": auroc(scores.tolist(), labels)}
    for budget in BUDGETS:
        blocked = (scores > threshold_for(ordinary, budget)).tolist()
        result[str(budget)] = {
            "safe_refused": estimate([b for b, y in zip(blocked, labels, strict=True) if not y]),
            "unsafe_blocked": estimate([b for b, y in zip(blocked, labels, strict=True) if y]),
        }
    return result


def attacks(sets: Sets, states: States, layer: int, count: int) -> dict[str, Any]:
    """Trained on plain text only, so every family is held out; measured on a source that is held out too."""
    source = "tdc2023"
    rest = [pair for pair in sets("harmful") if pair[1].source != source]
    detector = train_on(rest, sets("benign"), layer).detector
    draw = Random(0)
    harmful = draw.sample([r for _, r in sets("harmful") if r.source == source], count)
    benign = draw.sample([r for r in sets.rows["other"] if r.source == "truthfulqa"], count)
    examples = [Example(text=r.text, restricted=bool(r.label), group=r.source) for r in (*harmful, *benign)]
    result: dict[str, Any] = {}
    for family in ("plain", *ATTACKS):
        disguised = examples if family == "plain" else attacked(examples, [family], seed=0)
        blocked = blocked_by(detector, prepare([e.text for e in disguised], states.whole))
        result[family] = {
            "blocked": estimate(blocked[:count]),
            "benign_refused": estimate(blocked[count:]),
        }
        print(f"  {family}: {result[family]['blocked']['value']:.2f}", file=sys.stderr, flush=True)
    return result


def _unique(texts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def planted_set(
    backbone: Backbone,
    prompts: Sequence[str],
    benign: Sequence[str],
    restricted: Sequence[str],
    count: int,
    draw: Random,
) -> list[Planted]:
    """Answers of ordinary text; in half of them, text on the planted topic from a known token on, for 40 tokens.

    Texts are dealt into folds first and each answer is made of one fold's texts, so folds share none.
    """
    result = []
    ordinary, topic = (draw.sample(unique, len(unique)) for unique in map(_unique, (benign, restricted)))
    for number in range(count):
        fold = number // 2 % FOLDS
        prompt = backbone.chat.prompt([Message(role="user", content=draw.choice(prompts))])

        def tokens(text: str, lead: str = "") -> list[int]:
            return tokens_of(backbone, [Example(text=text, restricted=False, group="")], lead=lead)

        text = draw.choice(ordinary[fold::FOLDS])
        length = draw.randint(20, 60)
        begin = tokens(text)[:length]
        if number % 2:
            more = tokens(draw.choice(ordinary[fold::FOLDS]), " ")
            answer, onset = [*begin, *more][:100], None
        else:
            later = tokens(" ".join(draw.sample(topic[fold::FOLDS], 3)), " ")[:40]
            answer, onset = [*begin, *later], len(begin)
        result.append(Planted(prompt=prompt, answer=answer, onset=onset, fold=fold))
    return result


def onset(data: Path, sets: dict[str, list[Row]], backbone: Backbone, count: int) -> dict[str, Any]:
    """A planted topic, reviews of films: trained on one source of reviews and answers, measured on others.

    Training: sentence-polarity sentences behind self-instruct and LLMBar answers. Measured: sentences of the
    movie-reviews corpus behind GSM8K solutions and reference answers of MT-Bench.
    """
    sentences = [r["text"] for r in rows(data / "classifier/sentence-polarity.jsonl.gz")]
    documents = [r["text"] for r in rows(data / "classifier/movie-reviews.jsonl.gz")]
    other = [line for d in documents for line in d.splitlines() if 60 < len(line) < 240]
    train_answers = [
        r["output_1"] for r in rows(data / "pairwise/llmbar-processed.jsonl.gz") if len(r["output_1"]) > 120
    ]
    train_answers += [
        i["output"]
        for r in rows(data / "sft/self-instruct-seed-tasks.jsonl.gz")
        for i in r["instances"]
        if len(i["output"]) > 120
    ]
    test_answers = [r["answer"].split("####")[0] for r in rows(data / "sft/gsm8k-test-first600.jsonl.gz")]
    test_answers += [
        t
        for r in rows(data / "sft/mt-bench-gpt4-references.jsonl.gz")
        for t in r["choices"][0]["turns"]
        if len(t) > 120
    ]
    draw = Random(0)
    prompts = [row.text for row in sets["benign"] if len(row.text) < 200]
    training = planted_set(backbone, prompts, train_answers, sentences, count, draw)
    testing = planted_set(backbone, prompts, test_answers, other, count, draw)
    fitted = fit_output(answer_states(backbone, training, LAYERS), LAYERS, budget=BUDGET)
    at = LAYERS.index(fitted.probe.layer)
    held: list[AnswerStates] = answer_states(backbone, testing, LAYERS)
    return {
        "layer": fitted.probe.layer,
        "smoothing": fitted.probe.smoothing.model_dump(),
        "delays": fitted.delays,
        "layer_scores": fitted.layer_scores,
        **onset_table(fitted.probe, held, layer=at).model_dump(mode="json"),
        "probe": {"bytes": fitted.probe.probe.weights.nbytes + 4},
    }


def overhead(backbone: Backbone, pairs: int) -> dict[str, Any]:
    """CPU time of decoding 8 answers of 24 tokens with and without reading and scoring each step, interleaved."""
    sampler = LocalSampler(backbone, SamplerConfig(max_new_tokens=24, slots=8))
    prompts = [Prompt.from_text(f"Write a few words about the number {n}.") for n in range(8)]
    weights = np.random.default_rng(0).normal(size=backbone.width).astype(np.float32)

    def plain() -> None:
        sampler.generate(prompts, adapter=None, seed=0)

    def probed() -> None:
        with layer_states(backbone, [16]) as states:
            layer = backbone.layers[-1]

            def score(*_: Any) -> None:
                (states[16][:, -1].detach().float().numpy() @ weights).tolist()

            handle = layer.register_forward_hook(score)  # once per step, after the chosen layer
            try:
                sampler.generate(prompts, adapter=None, seed=0)
            finally:
                handle.remove()

    def cpu(work: Callable[[], None]) -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    plain(), probed()
    ratios = []
    for number in range(pairs):
        first, second = (plain, probed) if number % 2 else (probed, plain)
        a, b = cpu(first), cpu(second)
        base, with_probe = (a, b) if number % 2 else (b, a)
        ratios.append(with_probe / base - 1)
    draw = np.random.default_rng(0)
    medians = [float(np.median(draw.choice(ratios, len(ratios)))) for _ in range(2000)]
    low, high = np.quantile(medians, [0.025, 0.975])
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high), "pairs": pairs}


def table(result: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = ["| what | measured |", "|---|---|"]

    def pct(e: dict[str, Any]) -> str:
        return f"{100 * e['value']:.1f} % [{100 * e['low']:.1f}, {100 * e['high']:.1f}] ({e['blocked']} of {e['n']})"

    if "moderation" in result:
        m = result["moderation"]
        for name in ("TF-IDF", "probe", "ensemble"):
            lines.append(
                f"| moderation, five folds, {name} | AUROC {m[name]['auroc']:.3f}, "
                f"TPR at 1 % {m[name]['tpr_at_1']:.2f} |"
            )
        g = m["gain"]
        lines.append(f"| ensemble − TF-IDF, AUROC, paired | {g['value']:+.3f} [{g['low']:+.3f}, {g['high']:+.3f}] |")
    for source, row in result.get("sources", {}).items():
        for name in sorted(row.keys() - {"benign"}):
            who, budget = name.rsplit(" ", 1)
            lines.append(
                f"| {source} left out, {who}, budget {100 * float(budget):g} % of {row['benign']} | "
                f"blocked {pct(row[name]['blocked'])}; other families refused {pct(row[name]['other_refused'])} |"
            )
    if "xstest" in result:
        lines.append(f"| XSTest, zero-shot | AUROC {result['xstest']['auroc']:.3f} |")
        for budget in BUDGETS:
            x = result["xstest"][str(budget)]
            lines.append(
                f"| XSTest, budget {100 * budget:g} % | safe refused {pct(x['safe_refused'])}; "
                f"unsafe blocked {pct(x['unsafe_blocked'])} |"
            )
    for family, row in result.get("attacks", {}).items():
        lines.append(
            f"| attack {family} | blocked {pct(row['blocked'])}; harmless refused {pct(row['benign_refused'])} |"
        )
    if "onset" in result:
        o = result["onset"]
        leaks = ", ".join(f"{r['size']}: {100 * r['leaks']['value']:.0f} %" for r in o["hold_back"])
        lines.append(
            f"| planted onset ({o['planted']} answers, {o['harmless']} harmless) | median delay {o['delay']} tokens; "
            f"leaks by hold-back {leaks}; alarm before onset {100 * o['early']['value']:.1f} %, harmless stopped "
            f"{100 * o['false_alarms']['value']:.1f} % |"
        )
    if "overhead" in result:
        o = result["overhead"]
        lines.append(
            f"| probe while decoding, CPU time, {o['pairs']} pairs | {100 * o['median']:+.1f} % "
            f"[{100 * o['low']:+.1f}, {100 * o['high']:+.1f}] |"
        )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the public data")
    parser.add_argument("--json", type=Path, required=True, help="where results go; parts measured before are kept")
    parser.add_argument("--cache", type=Path, help="folder for states, to continue an interrupted run")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--attacked", type=int, default=60, help="texts of each kind that are disguised")
    parser.add_argument("--planted", type=int, default=240)
    parser.add_argument("--pairs", type=int, default=30)
    options = parser.parse_args(arguments)
    result: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    result |= {"machine": machine(), "versions": versions(), "layers": list(LAYERS), "tokens": options.tokens}
    torch.set_num_threads(1)
    backbone = Backbone.load(ModelConfig(name=NAME, context=2048))
    states = States(backbone, options.tokens, options.cache)
    sets = Sets(read_sets(options.data), states)

    def done(part: str, values: dict[str, Any]) -> None:
        result[part] = values
        write_json(options.json, result)
        print(f"{part} done", file=sys.stderr, flush=True)

    contrast, sample = sets.columns("xstest")
    layer, scores = best_layer(contrast, sample, [pair_of(row.source) for row in sample])
    result["layer"] = {"chosen on XSTest": LAYERS[layer], "AUROC by layer": scores}
    if "sources" in options.parts:
        done("sources", sources(sets, layer))
    if "moderation" in options.parts:
        done("moderation", moderation(*sets.columns("moderation"), layer=layer))
    if "xstest" in options.parts:
        texts, rows_of = sets.columns("moderation")
        other, scores = best_layer(texts, rows_of, range(len(texts)))
        chosen = {"layer, chosen on moderation": LAYERS[other], "AUROC by layer": scores}
        fitted = train_on(sets("harmful"), sets("benign"), other)
        trained_on = [*sets.rows["harmful"], *sets.rows["benign"]]
        done("xstest", xstest(fitted, trained_on, contrast, sample) | chosen)
    if "attacks" in options.parts:
        done("attacks", attacks(sets, states, layer, options.attacked))
    if "onset" in options.parts:
        done("onset", onset(options.data, sets.rows, backbone, options.planted))
    if "overhead" in options.parts:
        done("overhead", overhead(backbone, options.pairs))
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
