"""Reward model training: the loss by hand from scores computed one answer at a time."""

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch

from trimtab.algos import fit_ridge_bradley_terry
from trimtab.errors import DataError, NonFiniteError
from trimtab.models import AdapterConfig, Chat, FrozenStates, Role, collate
from trimtab.records import Completion, Preference, Prompt
from trimtab.testing import TEMPLATE, tiny_backbone, tokenizer
from trimtab.trainers import (
    OptimizerConfig,
    Ranking,
    RewardConfig,
    Session,
    encode_preferences,
    held_out,
    score_rankings,
    split_holdout,
    train_reward,
)
from trimtab.trainers.reward import prepared_states
from trimtab.trainers.reward_heads import init_reward_head, probe_reward_head
from trimtab.trainers.reward_losses import _ranking_losses

from ..kit import moved, same_weights, stir
from .rankings import ranking

REASONS: list[tuple[str, Literal["stop", "length"]]] = [("ended", "stop"), ("cut", "length")]
LORA = AdapterConfig(rank=4, alpha=8)
TOP = AdapterConfig(rank=4, alpha=8, top_layers=1)
FULL = AdapterConfig(kind="full")


def role(adapter: AdapterConfig = LORA) -> Role:
    return Role.trainable(tiny_backbone(), "reward", adapter, seed=1, scalar_head=True)


def mixed(chat: Chat) -> list[Ranking]:
    return [
        ranking(chat, 0, (0, 1)),
        ranking(chat, 1, (1, 0), margin=0.5),
        ranking(chat, 2, (0, 1, 1, 2), weight=3.0),
        ranking(chat, 3, (0, 1), probability=0.3, margin=0.7),
        ranking(chat, 4, (0, 0, 0)),  # all alike: nothing to learn, not counted
        ranking(chat, 5, (2, 1, 0)),
    ]


@torch.no_grad()
def score(one: Role, tokens: list[int]) -> float:
    assert one.scalar is not None
    return float(one.scalar(one.backbone.hidden(torch.tensor([tokens]), adapter=one.adapter)[0, -1]))


def by_hand(one: Role, rankings: list[Ranking], centring: float) -> tuple[float, float]:
    """Loss and accuracy, weighted means over rankings, in plain Python."""
    loss = right = weights = 0.0
    for r in rankings:
        s = [score(one, tokens) for tokens in r.sequences]
        pairs = [(a, b) for a in range(len(s)) for b in range(len(s)) if r.ranks[a] < r.ranks[b]]
        if not pairs:
            continue
        losses, hits = [], []
        for a, b in pairs:
            p = 1.0 if r.probability is None else r.probability
            delta = s[a] - s[b] - (r.margin or 0.0) * (1 if p > 0.5 else -1)
            losses.append(
                p * math.log1p(math.exp(-delta)) + (1 - p) * math.log1p(math.exp(delta)) + centring * (s[a] + s[b]) ** 2
            )
            hits.append(s[a] > s[b] if p >= 0.5 else s[a] < s[b])
        loss += r.weight * sum(losses) / len(pairs)
        right += r.weight * sum(hits) / len(pairs)
        weights += r.weight
    return loss / weights, right / weights


def trained(config: RewardConfig, adapter: AdapterConfig = LORA) -> tuple[Role, list[dict]]:
    one, rows = role(adapter), []
    train_reward(one, mixed(one.backbone.chat), config, seed=3, session=Session(log=rows.append))
    return one, rows


@pytest.mark.parametrize("centring", [0.0, 0.01])
def test_first_loss_by_hand(centring):
    _, rows = trained(RewardConfig(batch=8, epochs=1, centring=centring))
    fresh = role()
    init_reward_head(fresh, 3)
    loss, accuracy = by_hand(fresh, mixed(fresh.backbone.chat), centring)
    assert rows[0]["loss"] == pytest.approx(loss, abs=1e-5)
    assert rows[0]["accuracy"] == pytest.approx(accuracy)
    assert rows[0]["pairs"] == 1 + 1 + 5 + 1 + 3  # K = 4 with one tie has five strict pairs


def outcome(loss: str, delta: float, tie: float) -> tuple[float, float]:
    """P(first wins) and P(tie), from the models' definitions."""
    if loss == "davidson":
        worth = [math.exp(delta / 2), math.exp(-delta / 2), tie]
        return worth[0] / sum(worth), tie / sum(worth)
    win, lose = (1 / (1 + math.exp(tie - sign * delta)) for sign in (1, -1))
    return win, 1 - win - lose


@pytest.mark.parametrize("loss", ["davidson", "rao_kupper"])
def test_first_loss_with_ties_by_hand(loss):
    _, rows = trained(RewardConfig(batch=8, epochs=1, loss=loss, tie=0.6, centring=0.01))
    fresh = role()
    init_reward_head(fresh, 3)
    total = weights = 0.0
    for r in mixed(fresh.backbone.chat):
        s = [score(fresh, tokens) for tokens in r.sequences]
        losses = []
        for a in range(len(s)):
            for b in range(len(s)):
                centre = 0.01 * (s[a] + s[b]) ** 2
                if r.ranks[a] < r.ranks[b]:
                    p = 1.0 if r.probability is None else r.probability
                    delta = s[a] - s[b] - (r.margin or 0.0) * (1 if p > 0.5 else -1)
                    win, lose = outcome(loss, delta, 0.6)[0], outcome(loss, -delta, 0.6)[0]
                    losses.append(-p * math.log(win) - (1 - p) * math.log(lose) + centre)
                elif a < b and r.ranks[a] == r.ranks[b] and r.sequences[a] != r.sequences[b]:
                    losses.append(-math.log(outcome(loss, s[a] - s[b], 0.6)[1]) + centre)
        total += r.weight * sum(losses) / len(losses)
        weights += r.weight
    assert rows[0]["loss"] == pytest.approx(total / weights, abs=1e-5)
    assert rows[0]["pairs"] == 11  # ties are learned from, and not counted in the accuracy


def test_first_loss_of_plackett_and_luce_by_hand():
    one, rows = role(), []
    chat = one.backbone.chat
    rankings = [
        ranking(chat, 0, (2, 0, 1)),
        ranking(chat, 1, (1, 0), margin=0.5, weight=2.0),
        ranking(chat, 3, (0, 1), probability=0.3, margin=0.7),
    ]
    train_reward(
        one,
        rankings,
        RewardConfig(loss="plackett_luce", batch=8, centring=0.01),
        seed=3,
        session=Session(log=rows.append),
    )
    fresh = role()
    init_reward_head(fresh, 3)
    a, b, c = [score(fresh, t) for t in rankings[0].sequences]
    # best is b, then c, then a: two choices
    first = -(b - math.log(sum(map(math.exp, (a, b, c)))) + c - math.log(math.exp(a) + math.exp(c))) / 2
    first += 0.01 * ((b + c) ** 2 + (b + a) ** 2 + (c + a) ** 2) / 3
    pairs, _ = by_hand(fresh, rankings[1:], 0.01)  # two answers: Bradley–Terry
    assert rows[0]["loss"] == pytest.approx((first + 3 * pairs) / 4, abs=1e-5)


def test_plackett_and_luce_with_a_tie_by_hand():
    """Scores a, b, c; a and b tie before c: both orders of a and b."""
    scores = torch.tensor([0.7, -0.2, 0.1], dtype=torch.float64)
    tied = Ranking(
        id="r", sequences=[[1, 2], [1, 3], [1, 4]], prompt_length=1, ranks=(0, 0, 1), probability=None, margin=None,
        weight=1.0,
    )  # fmt: skip
    last = replace(tied, ranks=(0, 1, 1))  # one choice
    a, b, c = scores.exp().tolist()
    assert _ranking_losses(scores, [last], 0.0).item() == pytest.approx(-math.log(a / (a + b + c)))
    likelihood = a / (a + b + c) * b / (b + c) + b / (a + b + c) * a / (a + c)
    assert _ranking_losses(scores, [tied], 0.0).item() == pytest.approx(-math.log(likelihood) / 2)  # two choices


@pytest.mark.parametrize("adapter", [LORA, TOP, FULL], ids=["lora", "top", "full"])
def test_micro_batches_and_cache_do_not_change_the_result(adapter):
    settings = {"optimizer": OptimizerConfig(lr=1e-3, warmup=0.0), "epochs": 3, "batch": 3, "centring": 0.01}
    whole, rows = trained(RewardConfig(micro_batch_tokens=10_000, cache_mb=0.0, **settings), adapter)
    for budget, cache_mb in ((100, 1.0), (1, 1.0), (100, 0.02), (1, 0.0)):
        other, others = trained(RewardConfig(micro_batch_tokens=budget, cache_mb=cache_mb, **settings), adapter)
        assert [r["loss"] for r in others] == pytest.approx([r["loss"] for r in rows], abs=1e-5)
        same_weights(whole, other)


@pytest.mark.parametrize("settings", [{"epochs": 4}, {"epochs": 1, "head_init": "probe"}], ids=["epochs", "probe"])
def test_frozen_layers_run_once_per_answer(settings):
    one = role(TOP)
    usable = [r for r in mixed(one.backbone.chat) if len(set(r.ranks)) > 1]
    states = train_reward(one, usable, RewardConfig(batch=2, **settings), seed=0)
    answers = sum(len(r.sequences) for r in usable)
    assert states.computed == answers and states.hits >= answers


def test_a_full_store_is_not_filled_further():
    one = role(TOP)
    usable = [r for r in mixed(one.backbone.chat) if len(set(r.ranks)) > 1]
    room = (len(usable[0].sequences[0]) + 1) * 4 * one.backbone.width / 1e6
    states = prepared_states(one, usable, passes=2, cache_mb=room, micro_batch_tokens=1)
    assert states.full and states.computed < sum(len(r.sequences) for r in usable)
    # Nor later, with what is small enough: a resumed run would have other contents than an uninterrupted one.
    short, before = collate([[1]], [[False]], one.backbone.device), states.computed
    states.of(short)
    states.of(short)
    assert states.computed == before + 2


def test_one_pass_keeps_no_states():
    one = role(TOP)
    states = prepared_states(one, mixed(one.backbone.chat), passes=1, cache_mb=10, micro_batch_tokens=100)
    assert len(states) == 0 and states.computed == 0


def test_scores_on_known_states_are_those_without():
    one = role(TOP)
    usable = [r for r in mixed(one.backbone.chat) if len(set(r.ranks)) > 1]
    states = train_reward(one, usable, RewardConfig(batch=2, epochs=2), seed=0)
    plain, computed = score_rankings(one, usable), states.computed
    for scores, wanted in zip(score_rankings(one, usable, states=states), plain, strict=True):
        assert scores == pytest.approx(wanted, abs=1e-5)
    assert states.computed == computed  # all of them were known


def test_equal_ids_with_other_answers_are_not_mixed_up():
    one, two = role(TOP), role(TOP)
    rankings = mixed(one.backbone.chat)
    alike = [replace(r, id="same", probability=None, margin=None, weight=1.0) for r in rankings]
    config = RewardConfig(batch=2, epochs=2)
    train_reward(one, alike, config, seed=0)
    train_reward(two, alike, config.model_copy(update={"cache_mb": 0.0}), seed=0)
    moved(one, role(TOP))
    same_weights(one, two)


def test_scores_of_rankings_by_hand():
    one = stir(role())
    rankings = mixed(one.backbone.chat)
    wanted = [[score(one, s) for s in r.sequences] for r in rankings]
    for budget in (10_000, 1):
        scores = score_rankings(one, rankings, micro_batch_tokens=budget)
        assert [len(f) for f in scores] == [len(w) for w in wanted]
        for f, w in zip(scores, wanted, strict=True):
            assert f == pytest.approx(w, abs=1e-5)
    assert score_rankings(one, []) == []


def test_fresh_head_has_the_papers_spread():
    one = Role.trainable(tiny_backbone(layers=1, width=1024), "reward", LORA, seed=1, scalar_head=True)
    init_reward_head(one, 0)
    assert one.scalar is not None
    assert one.scalar.weight.std().item() == pytest.approx(1025**-0.5, rel=0.1)
    assert one.scalar.bias.item() == 0


def test_nothing_but_ties():
    chat = tiny_backbone().chat
    with pytest.raises(DataError, match="none of the 2 preferences has a better and a different, worse answer"):
        train_reward(role(), [ranking(chat, 0, (0, 0)), ranking(chat, 1, (1, 1, 1))], RewardConfig(), seed=0)
    with pytest.raises(DataError, match="none of the 0 preferences"):
        train_reward(role(), [], RewardConfig(), seed=0)


def test_bad_ranking_is_named():
    one = role(FULL)
    rankings = [r for r in mixed(one.backbone.chat) if r.id != "r4"]
    others = {t for r in rankings if r.id != "r5" for s in r.sequences for t in s}
    here = next(t for s in rankings[-1].sequences for t in s if t not in others)
    with torch.no_grad():
        one.backbone.model.get_input_embeddings().weight[here] = float("nan")
    with pytest.raises(NonFiniteError, match=r"samples involved: r5\. No weight was changed"):
        train_reward(one, rankings, RewardConfig(micro_batch_tokens=1), seed=0)


def test_holdout_keeps_what_belongs_together():
    ids = [f"p{i % 10}" for i in range(30)]
    train, held = split_holdout(ids, 0.2, seed=0)
    assert sorted(train + held) == list(range(30))
    assert len({ids[i] for i in held}) == 2 and not {ids[i] for i in held} & {ids[i] for i in train}
    assert split_holdout(ids[::-1], 0.2, seed=0)[1] == sorted(29 - i for i in held)  # by id, not by place
    assert split_holdout(ids, 0.0, seed=0)[1] == []
    assert len({tuple(split_holdout(ids, 0.2, seed=s)[1]) for s in range(8)}) > 1


def test_a_holdout_that_leaves_nothing_is_for_evaluation_only():
    assert held_out(["a", "b", "a"], 0.9, seed=0) == [0, 1, 2]
    with pytest.raises(DataError, match=r"a holdout of 0\.9 leaves none of 2 entries to train on; lower it"):
        split_holdout(["a", "b", "a"], 0.9, seed=0)


def test_encoded_preferences_end_as_they_ended():
    chat = Chat(tokenizer(), context=48)
    prompt = Prompt.from_text("warm tea")
    ended, cut = (
        Preference(
            id=name,
            prompt=prompt,
            completions=(
                Completion(text="thank you.", finish_reason=reason),
                Completion(text="no", finish_reason=None),
            ),
            ranks=(0, 1),
            weight=2.0,
            margin=0.5,
        )
        for name, reason in REASONS
    )
    long = Preference.pair(prompt, "bread " * 50, "a")
    rankings, kept, left_out = encode_preferences(chat, [ended, long, cut])
    assert (kept, left_out["too_long"]) == ([ended, cut], 1)
    head = chat.prompt(prompt.messages)
    body = tokenizer().encode("thank you.")
    assert rankings[0].sequences[0] == [*head, *body, chat.end_token]
    assert rankings[1].sequences[0] == [*head, *body]  # it never said that it had ended
    assert all(r.sequences[1][-1] == chat.end_token for r in rankings)
    assert (rankings[0].weight, rankings[0].margin, rankings[0].ranks) == (2.0, 0.5, (0, 1))


def test_a_preference_that_the_template_refuses_is_named_with_its_reason():
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + TEMPLATE
    chat = Chat(tokenizer(template=strict), context=48)
    told = Preference.pair(Prompt.from_text("warm tea", system="be kind."), "a", "b")
    plain = Preference.pair(Prompt.from_text("warm tea"), "a", "b")
    rankings, kept, left_out = encode_preferences(chat, [told, plain])
    assert (len(rankings), kept, left_out["too_long"]) == (1, [plain], 0)
    assert "no system here" in left_out["unrendered"].pop(told.id) and not left_out["unrendered"]


def ranked(number: int, texts: str, ranks: tuple[int, ...], **fields) -> Preference:
    answers = tuple(Completion(text=text) for text in texts.split())
    question = Prompt.from_text(f"tea {number}")
    return Preference(id=str(number), prompt=question, completions=answers, ranks=ranks, **fields)


def test_preferences_that_teach_nothing_are_left_out_and_counted():
    some = [
        ranked(0, "good bad", (0, 1)),
        ranked(1, "same same", (0, 1)),
        ranked(2, "same same", (0, 1), probability=0.9),
        ranked(3, "good bad", (0, 0)),
        ranked(4, "good bad", (0, 0), probability=0.5),  # a soft label says something
        ranked(5, "same same bad", (0, 1, 2)),
    ]
    rankings, kept, left_out = encode_preferences(Chat(tokenizer(), context=48), some)
    assert [r.id for r in rankings] == [p.id for p in kept] == ["0", "4", "5"]
    assert left_out == {"too_long": 0, "tied": 1, "identical": 2, "identical_pairs": 1, "unrendered": {}}
    assert rankings[2].pairs().tolist() == [[0, 2], [1, 2]]


def test_pairs_of_identical_answers_do_not_weigh():
    """Of the ranking a, a, b only a-b counts: its loss is that of one pair, not two thirds of it and a log 2."""
    one = role()
    init_reward_head(one, 0)
    (whole,), _, _ = encode_preferences(one.backbone.chat, [ranked(0, "same same bad", (0, 1, 2))])
    best, again, worst = score_rankings(one, [whole])[0]
    assert best == pytest.approx(again, abs=1e-6)
    rows: list[dict] = []
    train_reward(one, [whole], RewardConfig(batch=1), seed=0, session=Session(log=rows.append))
    assert rows[0]["loss"] == pytest.approx(math.log1p(math.exp(worst - best)), rel=1e-4)
    assert rows[0]["pairs"] == 2


# The first head ---------------------------------------------------------------------------


def test_ridge_bradley_terry_is_where_the_gradient_vanishes():
    generator = torch.Generator().manual_seed(0)
    gaps = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    targets = torch.rand(40, generator=generator, dtype=torch.float64)
    weights = torch.rand(40, generator=generator, dtype=torch.float64)
    v = fit_ridge_bradley_terry(gaps, targets, weights, penalty=0.7).requires_grad_(True)
    p = torch.sigmoid(gaps @ v)
    loss = -(weights * (targets * p.log() + (1 - targets) * (1 - p).log())).sum() + 0.35 * v.square().sum()
    loss.backward()
    assert v.grad is not None and float(v.grad.abs().max()) < 1e-9


@pytest.mark.parametrize("adapter", [LORA, TOP, FULL], ids=["lora", "top", "full"])
def test_probe_starts_below_a_zero_heads_loss_and_is_the_same_each_time(adapter):
    def first() -> dict:
        return trained(RewardConfig(batch=8, epochs=2, head_init="probe"), adapter)[1][0]

    zero = role(adapter)  # heads are zero until they are initialised
    assert first()["loss"] < by_hand(zero, mixed(zero.backbone.chat), 0.0)[0]
    assert first() == first()


def test_probe_is_the_penalised_fit_on_untrained_features():
    one = role(TOP)
    usable = [r for r in mixed(one.backbone.chat) if len(set(r.ranks)) > 1]
    plain = [score_of(one, usable)]
    probe_reward_head(one, usable, FrozenStates(one.backbone, limit=0), 100)
    again = role(TOP)
    probe_reward_head(again, usable, FrozenStates(again.backbone), 10_000)
    assert one.scalar is not None and again.scalar is not None
    torch.testing.assert_close(one.scalar.weight, again.scalar.weight, rtol=1e-3, atol=1e-5)
    assert score_of(one, usable) > plain[0] >= 0.0
    flat = [s for row in score_rankings(one, usable) for s in row]
    assert sum(flat) / len(flat) == pytest.approx(0.0, abs=1e-4)  # centred on the answers it saw


def score_of(one: Role, rankings: list[Ranking]) -> float:
    """Share of pairs in the right order, by reward and label alike."""
    right = []
    for r, s in zip(rankings, score_rankings(one, rankings), strict=True):
        p = 1.0 if r.probability is None else r.probability
        right += [
            (s[a] > s[b]) == (p > 0.5)
            for a in range(len(s))
            for b in range(len(s))
            if r.ranks[a] < r.ranks[b] and s[a] != s[b]
        ]
    return sum(right) / len(right) if right else 0.0


@pytest.mark.parametrize("loss", ["davidson", "rao_kupper"])
def test_a_loss_of_ties_needs_ties(loss):
    """Three tie votes on two answers are a soft label of one half, not a tie."""
    chat = tiny_backbone().chat
    rankings = [ranking(chat, 0, (0, 1)), ranking(chat, 1, (0, 0), probability=0.5)]
    with pytest.raises(DataError, match=r"none of the 2 preferences to train on has.*1 are soft labels.*labels: hard"):
        train_reward(role(), rankings, RewardConfig(loss=loss), seed=0)


def test_plackett_and_luce_count_identical_answers_once():
    """Ranks 0 and 1 have the same tokens: one choice remains, the better of them against the third answer."""
    scores = torch.tensor([0.2, 0.2, -0.3], requires_grad=True)
    same = Ranking(
        id="r", sequences=[[1, 2], [1, 2], [1, 3]], prompt_length=1, ranks=(0, 1, 2), probability=None, margin=None,
        weight=1.0,
    )  # fmt: skip
    loss = _ranking_losses(scores, [same], 0.0)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.5)))
    loss.backward()
    pull = 1 / (1 + math.exp(0.5))  # σ(−0.5)
    assert scores.grad is not None and scores.grad.tolist() == pytest.approx([-pull, 0.0, pull])
