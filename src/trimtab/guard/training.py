"""Trains a guard from a constitution: examples, features, detector, second stage and output probe."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from trimtab.constitution import Constitution
from trimtab.errors import ConfigError, DataError, TooLongError
from trimtab.guard.activations import pooled_texts, read
from trimtab.guard.config import GuardConfig
from trimtab.guard.dataset import (
    PLAIN,
    Example,
    attacked,
    deduplicated,
    from_constitution,
    ordinary,
    split,
)
from trimtab.guard.detector import FOLDS, Fitted, Prepared, fit_detector, prepare
from trimtab.guard.lexical import Lexical, Rules
from trimtab.guard.output import AnswerStates, FittedOutput, fit_output
from trimtab.guard.second import FittedSecond, fit_second
from trimtab.models import Backbone
from trimtab.records import Message

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The parts of a trained guard, and the examples for its report."""

    fitted: Fitted
    """The detector of requests."""
    second: FittedSecond | None
    """The second stage for requests; None: there is none."""
    output: FittedOutput | None
    """The detector of answers; None: the data have no answers, or there is no model."""
    rules: Rules | None
    """Names the rule of a blocked request."""
    layer: int | None
    """Layer of the request probes."""
    layers: tuple[int, ...]
    """Layers that were compared."""
    held_out: list[Example]
    """Examples of groups that training did not see, requests and answers."""
    counts: dict[str, int]
    """Number of examples used, held out and left out, by reason."""


def default_layers(count: int) -> tuple[int, ...]:
    """Six layers between a quarter and three quarters of the depth, fewer in a small model.

    >>> default_layers(30)
    (8, 10, 14, 16, 20, 22)
    """
    return tuple(sorted({max(1, round(count * (0.25 + 0.5 * i / 5))) for i in range(6)}))


def train_guard(
    constitution: Constitution,
    config: GuardConfig,
    *,
    backbone: Backbone | None = None,
    adapter: str | None = None,
    extra: Sequence[Example] = (),
    say: Say = lambda _: None,
) -> Trained:
    """Train a guard.

    Args:
        constitution: its guard rules say what is restricted.
        config: settings of the training.
        backbone: the model whose activations probes read; None: the guard uses TF-IDF only and checks no answers.
        adapter: the adapter whose weights are used; None: the trunk.
        extra: examples from files; they are split like the others.
        say: called with a line about each step.

    Raises:
        ConfigError: the constitution has no guard rules, an attack is unknown, or a second stage has no model to read.
        DataError: there is too little data.
    """
    if config.escalate and backbone is None:
        raise ConfigError(
            f"--escalate is {config.escalate:g} and the second stage reads a model, which a guard trained with "
            "--no-probes does without; leave one of the two out"
        )
    examples, repeated, contradictory = deduplicated([*from_constitution(constitution), *extra])
    train, held_out = split(examples, config.held_out, seed=config.seed)
    requests = [e for e in train if e.kind == "request"]
    requests += attacked([e for e in requests if e.family == PLAIN], config.attacks, seed=config.seed)
    say(
        f"{len(requests)} requests to learn from, {sum(e.kind == 'request' for e in held_out)} held out; {repeated} "
        f"repetitions and {contradictory} texts with both labels left out"
    )
    layers = () if backbone is None else config.layers or default_layers(len(backbone.layers))
    fitted, prepared = _fit_requests(requests, config, backbone, layers, adapter, say)
    second = None
    if config.escalate and backbone is not None:
        second = _fit_second(requests, prepared, fitted, config, backbone, adapter, say)
    fitted, layer = _one_layer(fitted, layers)
    output = None
    answers = [e for e in train if e.kind == "answer"]
    if backbone is not None and {e.restricted for e in answers} == {True, False}:
        say(f"planting {config.planted} answers")
        planted = plant(backbone, answers, requests, config.planted, folds=FOLDS, seed=config.seed)
        output = fit_output(answer_states(backbone, planted, layers, adapter=adapter), layers, budget=config.budget)
    counts = {
        "requests": len(requests),
        "restricted": sum(e.restricted for e in requests),
        "answers": len(answers),
        "held_out": len(held_out),
        "repeated": repeated,
        "contradictory": contradictory,
        "unread": sum(bool(p.unread) for p in prepared),
        "ordinary": sum(ordinary(requests)),
        "groups": len({e.group for e in requests}),
    }
    rules = _fit_rules(fitted, requests)
    return Trained(
        fitted=fitted, second=second, output=output, rules=rules, layer=layer, layers=tuple(layers), held_out=held_out,
        counts=counts,
    )  # fmt: skip


def _fit_requests(
    requests: Sequence[Example],
    config: GuardConfig,
    backbone: Backbone | None,
    layers: Sequence[int],
    adapter: str | None,
    say: Say,
) -> tuple[Fitted, list[Prepared]]:
    """The detector of requests, and the requests as it read them."""

    def states(texts: Sequence[str]) -> list[Any]:
        assert backbone is not None
        say(f"reading the states of {len(texts)} texts")
        return pooled_texts(backbone, texts, layers, adapter=adapter)

    prepared = prepare([e.text for e in requests], None if backbone is None else states)
    unread = sum(bool(p.unread) for p in prepared)
    if unread:
        say(f"{unread} requests are too long or encoded too deeply; only a part of each was read")
    fitted = fit_detector(
        prepared,
        [int(e.restricted) for e in requests],
        [e.group for e in requests],
        budget=config.budget,
        poolings=config.poolings,
        seed=config.seed,
    )
    return fitted, prepared


def _fit_second(
    requests: Sequence[Example],
    prepared: Sequence[Prepared],
    fitted: Fitted,
    config: GuardConfig,
    backbone: Backbone,
    adapter: str | None,
    say: Say,
) -> FittedSecond:
    """The second stage for requests."""
    say(f"second stage: training an adapter on the last layer with {len(requests)} texts")
    second = fit_second(
        backbone,
        prepared,
        [int(e.restricted) for e in requests],
        [e.group for e in requests],
        fitted,
        ordinary=ordinary(requests),
        budget=config.budget,
        escalate=config.escalate,
        adapter=adapter,
        seed=config.seed,
    )
    for line in second_stage_warnings(second, sum(ordinary(requests)), config.escalate):
        say(line)
    return second


def second_stage_warnings(second: FittedSecond, usual: int, escalate: float) -> list[str]:
    """Warnings about a second stage, one line each.

    Args:
        second: the trained second stage.
        usual: number of ordinary requests.
        escalate: largest share of them that may be escalated.
    """
    band, blocked = second.stage.band, second.blocked
    lines = []
    if band.on == "harmless":
        lines.append(
            f"second stage: {usual} ordinary requests (harmless texts whose group has no restricted one) are too few "
            f"to count a share of {escalate:.0%}; all {band.counted} harmless texts are counted. Give ordinary "
            "requests of your users with --data"
        )
    if blocked["both"] <= blocked["first stage"]:
        lines.append(
            f"second stage: in training, out of fold, {blocked['both']:.1%} of restricted texts are blocked with it "
            f"and {blocked['first stage']:.1%} without, so it does not help here; leave --escalate out, or give more "
            "texts with --data"
        )
    return lines


def _one_layer(fitted: Fitted, layers: Sequence[int]) -> tuple[Fitted, int | None]:
    """The detector with its probes on the one layer that a guard reads, and that layer; None without probes."""
    places = [m.place for m in fitted.detector.members if m.place is not None]
    if not places:
        return fitted, None
    members = tuple(
        m if m.place is None else replace(m, place=replace(m.place, layer=0)) for m in fitted.detector.members
    )
    return replace(fitted, detector=replace(fitted.detector, members=members)), layers[places[0].layer]


def _fit_rules(fitted: Fitted, requests: Sequence[Example]) -> Rules | None:
    """The classifier that names the rule of a blocked request; None: no request is labelled with a rule."""
    lexical = next(m.model for m in fitted.detector.members if isinstance(m.model, Lexical))
    named = [e for e in requests if e.restricted and e.rule]
    return Rules.fit(lexical, [e.text for e in named], [e.rule or "" for e in named]) if named else None


@dataclass(frozen=True, kw_only=True)
class Planted:
    """An assembled answer, as tokens."""

    prompt: list[int]
    """Tokens of the request, rendered."""
    answer: list[int]
    """Tokens of the answer, without the end token."""
    onset: int | None
    """Index in ``answer`` of the first restricted token; None: there is none."""
    fold: int
    """Fold of all its sentences; no other fold has sentences of their groups."""


def plant(
    backbone: Backbone,
    answers: Sequence[Example],
    requests: Sequence[Example],
    count: int,
    *,
    folds: int = 1,
    seed: int,
) -> list[Planted]:
    """Assemble answers from harmless sentences, half of them with restricted sentences from a known token on.

    A harmless answer has two to six sentences. A planted answer has one to three harmless sentences, then at most three
    restricted sentences of one rule. The groups of the sentences are first assigned to folds, restricted and harmless
    groups separately. Each answer uses sentences of one fold, so a probe fitted on the other folds has seen none of
    them.

    Args:
        backbone: its tokenizer and chat template are used.
        answers: sentences, restricted and harmless.
        requests: requests to draw from; only harmless ones are used.
        count: number of answers.
        folds: maximum number of folds; at least one, and fewer if a kind has fewer groups.
        seed: seed of the draw.
    """
    draw = Random(seed)
    harmless_requests = [e.text for e in requests if not e.restricted] or ["Tell me about it."]
    sentences_by_fold = _sentences_by_fold(answers, folds, seed)
    result = []
    for number in range(count):
        prompt = backbone.chat.prompt([Message(role="user", content=draw.choice(harmless_requests))])
        fold = number // 2 % len(sentences_by_fold)
        harmless = [e for e in sentences_by_fold[fold] if not e.restricted]
        restricted = [e for e in sentences_by_fold[fold] if e.restricted]
        if number % 2:
            begin = draw.sample(harmless, min(len(harmless), draw.randint(2, 6)))
            result.append(Planted(prompt=prompt, answer=tokens_of(backbone, begin), onset=None, fold=fold))
            continue
        begin = tokens_of(backbone, draw.sample(harmless, min(len(harmless), draw.randint(1, 3))))
        first = draw.choice(restricted)
        same_rule = [e for e in restricted if e.rule == first.rule and e is not first]
        rest = [first, *draw.sample(same_rule, min(2, len(same_rule)))]
        answer = [*begin, *tokens_of(backbone, rest, lead=" ")]
        result.append(Planted(prompt=prompt, answer=answer, onset=len(begin), fold=fold))
    return result


def _sentences_by_fold(answers: Sequence[Example], folds: int, seed: int) -> list[list[Example]]:
    """Sentences by fold, both kinds in each; each group is in one fold.

    Groups with and without restricted sentences are assigned separately. A group with both kinds counts as restricted.
    If a fold then has no harmless sentence, there is one fold fewer, down to one.
    """
    mixed = {e.group for e in answers if e.restricted}
    for count in range(folds, 0, -1):
        fold: dict[str, int] = {}
        for part in (sorted(mixed), sorted({e.group for e in answers} - mixed)):
            fold |= {group: number % count for number, group in enumerate(Random(seed).sample(part, len(part)))}
        by_fold = [[e for e in answers if fold[e.group] == f] for f in range(count)]
        if all({e.restricted for e in part} == {True, False} for part in by_fold):
            return by_fold
    raise DataError("planted answers need restricted and harmless sentences; give both under `answers`")


def tokens_of(backbone: Backbone, sentences: Sequence[Example], *, lead: str = "") -> list[int]:
    """Tokens of sentences joined by spaces; control tokens in them are encoded as plain characters."""
    text = lead + " ".join(e.text for e in sentences)
    return list(backbone.chat.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def answer_states(
    backbone: Backbone, planted: Sequence[Planted], layers: Sequence[int], *, adapter: str | None = None
) -> list[AnswerStates]:
    """The states of answers after their prompts, as the model computes them while it writes.

    Raises:
        TooLongError: an answer with its prompt does not fit the model's context.
    """
    rows = [[*p.prompt, *p.answer] for p in planted]
    longest = max(map(len, rows), default=0)
    if longest > backbone.chat.context:
        raise TooLongError(
            f"a planted answer has {longest} tokens with its request but the model's context is "
            f"{backbone.chat.context}; raise --context or give shorter sentences"
        )
    result: dict[int, AnswerStates] = {}
    for i, states in read(backbone, rows, layers, adapter=adapter):
        part = states[len(planted[i].prompt) :].half().numpy()
        result[i] = AnswerStates(states=part, onset=planted[i].onset, fold=planted[i].fold)
    return [result[i] for i in range(len(planted))]
