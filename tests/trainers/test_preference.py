"""Offline alignment: every loss by hand from log-probabilities of whole answers, computed one at a time."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trimtab.errors import ConfigError, DataError
from trimtab.models import AdapterConfig, Chat, Role
from trimtab.records import Completion, Preference, Prompt, Rating
from trimtab.testing import prompts, sentences, tiny_backbone, tokenizer
from trimtab.trainers import (
    OFFLINE,
    ApoDownConfig,
    ApoZeroConfig,
    BcoConfig,
    CpoConfig,
    DpoConfig,
    ExoConfig,
    HingeConfig,
    IpoConfig,
    Judged,
    KtoConfig,
    NcaConfig,
    OptimizerConfig,
    OrpoConfig,
    PairConfig,
    PlackettLuceConfig,
    Ranking,
    Session,
    SimpoConfig,
    SppoConfig,
    answer_logprobs,
    encode_preferences,
    encode_ratings,
    evaluate_kto,
    evaluate_preference,
    judged_from_rankings,
    reference_logprobs,
    train_kto,
    train_preference,
)
from trimtab.trainers.kto import _mismatched

from ..kit import moved, same_weights, stir
from .rankings import ranking

LORA = AdapterConfig(rank=4, alpha=8)
TOP = AdapterConfig(rank=4, alpha=8, top_layers=1)
FULL = AdapterConfig(kind="full")
METHODS: list[PairConfig] = [
    DpoConfig(beta=0.3),
    DpoConfig(beta=0.3, label_smoothing=0.2),
    DpoConfig(beta=0.3, label_smoothing=0.2, smoothing="robust"),
    IpoConfig(tau=0.2),
    HingeConfig(beta=0.3),
    OrpoConfig(lam=0.5),
    SimpoConfig(beta=1.5, gamma=0.4),
    CpoConfig(beta=0.3, alpha=0.7),
    CpoConfig(beta=0.3, alpha=0.7, nll="sum"),
    IpoConfig(tau=0.2, normalise=True),
    DpoConfig(beta=3.0, normalise=True, nll=0.5),
    ApoZeroConfig(beta=0.3),
    ApoDownConfig(beta=0.3),
    BcoConfig(beta=0.3),
    SppoConfig(beta=0.3),
    ExoConfig(beta=0.3, eps=0.01),
    NcaConfig(beta=0.3),
    PlackettLuceConfig(beta=0.3),
]


def mixed(chat: Chat) -> list[Ranking]:
    return [
        ranking(chat, 0, (0, 1)),
        ranking(chat, 1, (1, 0)),
        ranking(chat, 2, (0, 1, 1, 2), weight=3.0),
        ranking(chat, 4, (0, 0, 0)),  # all alike: nothing to learn, not counted
        ranking(chat, 5, (2, 1, 0)),
    ]


@torch.no_grad()
def logprob(role: Role, tokens: list[int], start: int) -> float:
    """log π(answer | prompt), token by token, from the model's own logits."""
    hidden = role.backbone.hidden(torch.tensor([tokens]), adapter=role.adapter)[0]
    logits = role.backbone.head(hidden).double()
    table = torch.log_softmax(logits, dim=-1)
    return sum(float(table[t - 1, tokens[t]]) for t in range(start, len(tokens)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def ranking_loss(beta: float, ratios: list[float], ranks: tuple[int, ...]) -> float:
    """−log of the chance to draw the answers in an order that agrees with their ranks."""
    chance = 0.0
    for order in itertools.permutations(range(len(ratios))):
        if all(ranks[a] <= ranks[b] for a, b in itertools.pairwise(order)):
            left = [math.exp(beta * ratios[i]) for i in order]
            chance += math.prod(left[k] / sum(left[k:]) for k in range(len(left)))
    return -math.log(chance)


def pair_loss(
    config: PairConfig,
    w: float,
    l: float,  # noqa: E741
    rw: float,
    rl: float,
    nw: int,
    nl: int,
    mean_length: float,
    mean_ratio: float,
) -> float:
    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    h = (w - l) - (rw - rl)
    if isinstance(config, ApoZeroConfig | ApoDownConfig | BcoConfig | ExoConfig | NcaConfig):
        a, b = config.beta * (w - rw), config.beta * (l - rl)
    match config:
        case ApoZeroConfig():
            return 1 - sigmoid(a) + sigmoid(b)
        case ApoDownConfig():
            return sigmoid(a) + 1 - sigmoid(a - b)
        case BcoConfig():
            return softplus(config.beta * mean_ratio - a) + softplus(b - config.beta * mean_ratio)
        case SppoConfig():
            return (w - rw - 0.5 / config.beta) ** 2 + (l - rl + 0.5 / config.beta) ** 2
        case ExoConfig():
            q = sigmoid(a - b)
            return q * math.log(q / (1 - config.eps)) + (1 - q) * math.log((1 - q) / config.eps)
        case NcaConfig():
            return softplus(-a) + softplus(a) / 2 + softplus(b) / 2
        case DpoConfig() if config.normalise:
            return softplus(-config.beta * ((w - rw) / nw - (l - rl) / nl)) - config.nll * w / nw
        case DpoConfig():
            e, right, wrong = config.label_smoothing, softplus(-config.beta * h), softplus(config.beta * h)
            if config.smoothing == "robust":
                return ((1 - e) * right - e * wrong) / (1 - 2 * e)
            return (1 - e) * right + e * wrong
        case IpoConfig():
            h = (w - rw) / nw - (l - rl) / nl if config.normalise else h
            return (h - 1 / (2 * config.tau)) ** 2
        case HingeConfig():
            return max(0.0, 1 - config.beta * h)
        case OrpoConfig():
            a, b = w / nw, l / nl
            gap = (a - math.log(1 - math.exp(a))) - (b - math.log(1 - math.exp(b)))
            return -a + config.lam * softplus(-gap)
        case SimpoConfig():
            return softplus(-(config.beta * (w / nw - l / nl) - config.gamma))
        case CpoConfig():
            nll = -w / mean_length if config.nll == "mean" else -w
            return softplus(-config.beta * (w - l)) + config.alpha * nll


def mean_chosen_length(rankings: list[Ranking]) -> float:
    """Tokens of the better answers over their number, each ranking counting once, times its weight."""
    total = weights = 0.0
    for r in rankings:
        sizes = [len(s) - r.prompt_length for s in r.sequences]
        better = [a for a in range(len(sizes)) for b in range(len(sizes)) if r.ranks[a] < r.ranks[b]]
        if better:
            total += r.weight * sum(sizes[a] for a in better) / len(better)
            weights += r.weight
    return total / weights


def mean_log_ratio(policy: Role, reference: Role, rankings: list[Ranking]) -> float:
    """½·(log-ratio of the better + of the other), over the pairs, each ranking counting once, times its weight."""
    total = weights = 0.0
    for r in rankings:
        ratios = [logprob(policy, s, r.prompt_length) - logprob(reference, s, r.prompt_length) for s in r.sequences]
        n = len(ratios)
        both = [(ratios[a] + ratios[b]) / 2 for a in range(n) for b in range(n) if r.ranks[a] < r.ranks[b]]
        if both:
            total, weights = total + r.weight * sum(both) / len(both), weights + r.weight
    return total / weights


def by_hand(config: PairConfig, policy: Role, reference: Role, rankings: list[Ranking]) -> float:
    total = weights = 0.0
    length, mean_ratio = mean_chosen_length(rankings), mean_log_ratio(policy, reference, rankings)
    for r in rankings:
        ours = [logprob(policy, s, r.prompt_length) for s in r.sequences]
        theirs = [logprob(reference, s, r.prompt_length) for s in r.sequences]
        sizes = [len(s) - r.prompt_length for s in r.sequences]
        pairs = [(a, b) for a in range(len(ours)) for b in range(len(ours)) if r.ranks[a] < r.ranks[b]]
        if not pairs:
            continue
        losses = [
            pair_loss(config, ours[a], ours[b], theirs[a], theirs[b], sizes[a], sizes[b], length, mean_ratio)
            for a, b in pairs
            if not isinstance(config, PlackettLuceConfig)
        ]
        if isinstance(config, PlackettLuceConfig):
            ratios = [a - b for a, b in zip(ours, theirs, strict=True)]
            losses = [ranking_loss(config.beta, ratios, r.ranks)] * len(pairs)
        total += r.weight * sum(losses) / len(pairs)
        weights += r.weight
    return total / weights


def known(config: PairConfig, reference: Role, rankings: list[Ranking]) -> list[list[float]] | None:
    return answer_logprobs(reference, rankings) if OFFLINE[config.method].reference else None


@pytest.mark.parametrize("config", METHODS, ids=lambda c: c.method)
def test_first_loss_by_hand(config):
    trunk, rows = tiny_backbone(), []
    policy, reference = stir(Role.trainable(trunk, "policy", LORA, seed=1), scale=0.05), Role(trunk)
    rankings = mixed(trunk.chat)
    wanted = by_hand(config, policy, reference, rankings)
    assert evaluate_preference(policy, rankings, config, reference=known(config, reference, rankings))[
        "loss"
    ] == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    config = config.model_copy(update={"batch": 8})
    train_preference(
        policy, rankings, config, reference=known(config, reference, rankings), seed=3, session=Session(log=rows.append)
    )
    assert rows[0]["loss"] == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("adapter", [LORA, TOP, FULL], ids=["lora", "top", "full"])
@pytest.mark.parametrize("config", [METHODS[0], METHODS[6], METHODS[7]], ids=["dpo", "simpo", "cpo"])
def test_micro_batches_and_cache_do_not_change_the_result(adapter, config):
    fast = {"optimizer": OptimizerConfig(lr=1e-3, warmup=0.0), "epochs": 3, "batch": 3}

    def trained(**settings) -> tuple[Role, list[float]]:
        trunk, rows = tiny_backbone(), []
        policy, rankings = Role.trainable(trunk, "policy", adapter, seed=1), mixed(trunk.chat)
        used = config.model_copy(update=fast | settings)
        train_preference(
            policy, rankings, used, reference=known(used, Role(trunk), rankings), seed=3,
            session=Session(log=lambda row: rows.append(row["loss"])),
        )  # fmt: skip
        return policy, rows

    whole, losses = trained(micro_batch_tokens=10_000, cache_mb=0.0)
    for budget, cache_mb in ((100, 1.0), (1, 0.02), (1, 0.0)):
        other, others = trained(micro_batch_tokens=budget, cache_mb=cache_mb)
        assert others == pytest.approx(losses, abs=1e-5)
        same_weights(whole, other)


def test_soft_labels_swap_with_their_answers():
    trunk = tiny_backbone()
    policy, reference = stir(Role.trainable(trunk, "policy", LORA, seed=1), scale=0.05), Role(trunk)
    one = ranking(trunk.chat, 1, (0, 1), probability=0.8)
    two = replace(one, sequences=one.sequences[::-1], ranks=(1, 0), probability=1 - 0.8)
    for config in (METHODS[0], METHODS[3]):
        a, b = (evaluate_preference(policy, [r], config, reference=answer_logprobs(reference, [r])) for r in (one, two))
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["accuracy"] == b["accuracy"]


@pytest.mark.parametrize("config", METHODS[4:8], ids=lambda c: c.method)
def test_soft_labels_are_refused_where_no_formula_takes_them(config):
    trunk = tiny_backbone()
    policy, soft = Role.trainable(trunk, "policy", LORA, seed=1), [ranking(trunk.chat, 1, (0, 1), probability=0.8)]
    with pytest.raises(
        ConfigError, match=rf"1 of 1 preferences carry soft labels.*{config.method}.*use align.method dpo"
    ):
        train_preference(policy, soft, config, reference=known(config, Role(trunk), soft), seed=0)


def test_soft_labels_and_smoothing_contradict_each_other():
    trunk = tiny_backbone()
    soft = [ranking(trunk.chat, 1, (0, 1), probability=0.8)]
    with pytest.raises(ConfigError, match="set label_smoothing: 0"):
        evaluate_preference(Role(trunk), soft, METHODS[1], reference=[[-1.0, -2.0]])


def test_reference_is_asked_for_where_it_is_needed_and_only_there():
    trunk = tiny_backbone()
    rankings = mixed(trunk.chat)
    with pytest.raises(ConfigError, match=r"'dpo' needs them \(answer_logprobs\)"):
        train_preference(Role(trunk), rankings, DpoConfig(), reference=None, seed=0)
    with pytest.raises(ConfigError, match="'simpo' takes no reference"):
        train_preference(Role(trunk), rankings, SimpoConfig(), reference=[[0.0]], seed=0)


def test_nothing_to_learn():
    trunk = tiny_backbone()
    same = ranking(trunk.chat, 1, (0, 1))
    same = replace(same, sequences=[same.sequences[0]] * 2)
    with pytest.raises(DataError, match="none of the 2 preferences has a better and a different, worse answer"):
        train_preference(Role(trunk), [same, ranking(trunk.chat, 4, (0, 0, 0))], SimpoConfig(), reference=None, seed=0)
    assert evaluate_preference(Role(trunk), [same], SimpoConfig(), reference=None) == {}
    assert answer_logprobs(Role(trunk), []) == []


def test_reference_is_kept_under_a_name_made_from_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trunk = tiny_backbone()
    rankings, role = mixed(trunk.chat), Role(trunk)
    wanted = answer_logprobs(role, rankings)
    assert reference_logprobs(role, rankings, tmp_path) == wanted
    (path,) = tmp_path.iterdir()
    Role.trainable(trunk, "policy", LORA, seed=1)  # an adapter beside it does not make it another reference
    monkeypatch.setattr("trimtab.trainers.reference.answer_logprobs", lambda *_, **__: pytest.fail("ran again"))
    assert reference_logprobs(role, rankings, tmp_path) == wanted
    monkeypatch.undo()
    reference_logprobs(role, rankings[:-1], tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # other answers
    with torch.no_grad():
        next(trunk.model.parameters()).add_(0.1)
    assert reference_logprobs(role, rankings, tmp_path) != wanted
    assert len(list(tmp_path.iterdir())) == 3 and path.exists()  # another model


def test_encoded_preferences_know_where_the_prompt_ends():
    chat = Chat(tokenizer(), context=128)
    prompt = Prompt.from_text("Who sings?")
    (one,), _, _ = encode_preferences(chat, [Preference.pair(prompt, "The red fox.", "No.")])
    assert [s[: one.prompt_length] for s in one.sequences] == [chat.prompt(prompt.messages)] * 2


# Single answers ---------------------------------------------------------------------------


def test_rankings_to_thumbs():
    chat = Chat(tokenizer(), context=128)
    answers, balanced = judged_from_rankings([ranking(chat, 0, (0, 1, 2)), ranking(chat, 1, (0, 1), probability=0.2)])
    assert [(a.id, a.desirable) for a in answers] == [("r0/0", True), ("r0/2", False), ("r1/0", False), ("r1/1", True)]
    assert balanced == 1  # the middle one wins as often as it loses
    same = ranking(chat, 0, (0, 1, 2))
    same = replace(same, sequences=[same.sequences[0], same.sequences[0], same.sequences[2]])
    answers, balanced = judged_from_rankings([same])  # it is not disliked for losing to itself
    assert [(a.id, a.desirable) for a in answers] == [("r0/0", True), ("r0/1", True), ("r0/2", False)]


def test_thumbs_from_ratings():
    chat = Chat(tokenizer(), context=40)
    prompt = Prompt.from_text("Who sings?")
    texts = [("Red fox.", True), ("No.", False), (" ".join(sentences(30)), True)]
    ratings = [
        Rating(id=str(i), prompt=prompt, completion=Completion(text=text), good=good)
        for i, (text, good) in enumerate(texts)
    ]
    answers, left_out = encode_ratings(chat, ratings)
    assert [a.desirable for a in answers] == [True, False] and left_out == {"too_long": 1, "unrendered": {}}
    assert answers[0].prompt + answers[0].answer == chat.answer(prompt.messages, "Red fox.").tokens


def test_a_thumb_on_a_cut_answer_teaches_no_end():
    chat, prompt = Chat(tokenizer(), context=64), prompts(1)[0]
    ended, cut, empty = (
        Rating(id=name, prompt=prompt, completion=Completion(text=text, finish_reason=reason), good=True)
        for name, text, reason in (("a", "red fox", "stop"), ("b", "red fox", "length"), ("c", "", "length"))
    )
    answers, left_out = encode_ratings(chat, [ended, cut, empty])
    assert answers[0].answer == [*answers[1].answer, chat.end_token]
    assert left_out == {"too_long": 0, "unrendered": {"c": "an answer was cut before its first word"}}


def judged(chat: Chat) -> list[Judged]:
    return judged_from_rankings(mixed(chat))[0]


def test_kto_by_hand():
    trunk = tiny_backbone()
    policy, reference = stir(Role.trainable(trunk, "policy", LORA, seed=1), scale=0.05), Role(trunk)
    answers, config = judged(trunk.chat), KtoConfig(beta=0.3, weight_desirable=1.5, weight_undesirable=0.5)

    def ratio(prompt: list[int], answer: list[int]) -> float:
        tokens = prompt + answer
        return logprob(policy, tokens, len(prompt)) - logprob(reference, tokens, len(prompt))

    prompts_of = [a.prompt for a in answers]
    shifted = []
    for i, a in enumerate(answers):  # under the next prompt that is another one
        others = [p for p in prompts_of[i + 1 :] + prompts_of[:i] if p != a.prompt]
        shifted.append(ratio(others[0], a.answer))
    assert any(a.prompt == b.prompt for a, b in itertools.pairwise(answers))  # so this matters
    z = max(0.0, sum(shifted) / len(shifted))
    total = 0.0
    for a in answers:
        r, sign = ratio(a.prompt, a.answer), 1 if a.desirable else -1
        value = 1 / (1 + math.exp(-sign * 0.3 * (r - z)))
        total += a.weight * (1.5 if a.desirable else 0.5) * (1 - value)
    wanted = total / sum(a.weight for a in answers)
    assert evaluate_kto(policy, reference, answers, config)["loss"] == pytest.approx(wanted, abs=1e-5)
    rows: list[dict] = []
    config = config.model_copy(update={"batch": len(answers)})
    train_kto(policy, reference, answers[::-1], config, seed=0, session=Session(log=rows.append))
    assert len(rows) == 1 and math.isfinite(rows[0]["loss"])


def test_kto_never_pairs_an_answer_with_its_own_prompt():
    chat = Chat(tokenizer(), context=128)
    answers = [replace(a, answer=[number]) for number, a in enumerate(judged(chat))]
    for turn in range(len(answers)):
        pairs = _mismatched(answers[turn:] + answers[:turn])
        assert len(pairs) == len(answers) and all(prompt != answers[a].prompt for prompt, [a] in pairs)
    one_prompt = [a for a in answers if a.prompt == answers[0].prompt]
    assert len(one_prompt) > 1 and _mismatched(one_prompt) == []


def test_kto_on_one_prompt_has_a_reference_point_of_zero():
    trunk = tiny_backbone()
    policy = stir(Role.trainable(trunk, "policy", LORA, seed=1), scale=0.05)
    one_prompt = [a for a in judged(trunk.chat) if a.prompt == judged(trunk.chat)[0].prompt]
    assert evaluate_kto(policy, Role(trunk), one_prompt, KtoConfig())["reference_point"] == 0.0


def test_kto_micro_batches_do_not_change_the_result():
    def trained(budget: int) -> Role:
        trunk = tiny_backbone()
        policy = Role.trainable(trunk, "policy", TOP, seed=1)
        config = KtoConfig(batch=4, epochs=2, micro_batch_tokens=budget, optimizer=OptimizerConfig(lr=1e-3, warmup=0.0))
        train_kto(policy, Role(trunk), judged(trunk.chat), config, seed=0)
        return policy

    whole = trained(10_000)
    moved(whole, Role.trainable(tiny_backbone(), "policy", TOP, seed=1))
    same_weights(whole, trained(1))


@pytest.mark.parametrize("kept", [True, False])
def test_kto_with_one_kind_only(kept):
    trunk = tiny_backbone()
    some = [a for a in judged(trunk.chat) if a.desirable is kept]
    with pytest.raises(DataError, match="KTO needs answers of both kinds"):
        train_kto(Role(trunk), Role(trunk), some, KtoConfig(), seed=0)


def test_kto_mismatch_that_exceeds_the_context_is_left_out():
    trunk = tiny_backbone(context=48)
    answers = judged(trunk.chat)
    long = replace(answers[0], prompt=answers[0].prompt * 4)
    long = replace(long, prompt=long.prompt[: 48 - len(long.answer)])
    result = evaluate_kto(Role(trunk), Role(trunk), [long, *answers[1:]], KtoConfig())
    assert result["reference_point"] == 0.0 and result["loss"] == pytest.approx(0.5, abs=1e-5)
    assert evaluate_kto(Role(trunk), Role(trunk), answers[:1], KtoConfig()) == {}


def test_too_many_ties_for_a_loss_of_whole_rankings_are_refused_before_training():
    many = Ranking(
        id="m", sequences=[[1, 2, i] for i in range(15)], prompt_length=2, ranks=(0,) * 13 + (1, 1), probability=None,
        margin=None, weight=1.0,
    )  # fmt: skip
    with pytest.raises(DataError, match=r"preference m: 13 answers tie above the last place, .* takes at most 12"):
        train_preference(Role(tiny_backbone()), [many], PlackettLuceConfig(), reference=[[0.0] * 15], seed=0)


def test_a_loss_of_whole_rankings_has_its_limits():
    trunk = tiny_backbone()
    chat = trunk.chat
    pairs = [ranking(chat, i, (0, 1)) for i in range(3)]
    known = answer_logprobs(Role(trunk), pairs)
    policy = stir(Role.trainable(trunk, "policy", LORA, seed=1), scale=0.05)
    losses = [
        evaluate_preference(policy, pairs, kind, reference=known)["loss"]
        for kind in (PlackettLuceConfig(beta=0.3), DpoConfig(beta=0.3))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # of two answers it is DPO
    again = [r.sequences[0] for r in pairs[:1]] * 2
    same = replace(pairs[0], sequences=[*again, pairs[0].sequences[1]], ranks=(0, 1, 2))  # the first answer twice
    repeated = evaluate_preference(
        policy, [same], PlackettLuceConfig(beta=0.3), reference=[[known[0][0]] * 2 + known[0][1:]]
    )
    alone = evaluate_preference(policy, pairs[:1], PlackettLuceConfig(beta=0.3), reference=known[:1])
    assert repeated["loss"] == pytest.approx(alone["loss"], rel=1e-5)


def test_soft_labels_leave_open_what_to_imitate():
    trunk = tiny_backbone()
    soft = [ranking(trunk.chat, 0, (0, 1), probability=0.7)]
    known = answer_logprobs(Role(trunk), soft)
    with pytest.raises(ConfigError, match=r"align\.nll imitates the better answer, and 1 of 1 preferences carry soft"):
        evaluate_preference(Role(trunk), soft, DpoConfig(nll=1.0), reference=known)
    assert evaluate_preference(Role(trunk), soft, SppoConfig(), reference=known)["loss"] > 0


@pytest.mark.parametrize("config", METHODS, ids=lambda c: c.method)
def test_a_soft_label_of_one_or_zero_is_certain(config):
    """Three unanimous votes give p = 1 (or 0): no method refuses it, and the loss is that of the ranks."""
    trunk = tiny_backbone()
    policy, reference = stir(Role.trainable(trunk, "policy", LORA, seed=1), scale=0.05), Role(trunk)
    for p, ranks in ((1.0, (0, 1)), (0.0, (1, 0))):
        certain, voted = (ranking(trunk.chat, 1, r, probability=q) for r, q in ((ranks, None), ((0, 0), p)))
        losses = [
            evaluate_preference(policy, [r], config, reference=known(config, reference, [r]))["loss"]
            for r in (certain, voted)
        ]
        assert losses[0] == losses[1]
