"""One optimiser step, against torch used by hand."""

import copy

import pytest
import torch

from trimtab.errors import NonFiniteError
from trimtab.models import AdapterConfig, Batch, Role, collate
from trimtab.testing import chat_messages, sentences, tiny_backbone
from trimtab.trainers import Learner, Norms, OptimizerConfig, scheduled_lr


def role(**model) -> Role:
    return Role.trainable(tiny_backbone(layers=1, **model), "policy", AdapterConfig(kind="full"), seed=0)


def batch_of(one: Role, count: int = 6) -> Batch:
    conversations = [one.backbone.chat.conversation(chat_messages("sing", text)) for text in sentences(count)]
    return collate([e.tokens for e in conversations], [e.response_mask for e in conversations], one.backbone.device)


def nll(one: Role):
    def loss(part: Batch, norms: Norms):
        total = -one.logprobs(part).sum() / norms.tokens
        return total, {"share": part.size / norms.sequences}

    return loss


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        (
            "cosine",  # (1 + cos(π k / 8)) / 2
            [1 / 3, 2 / 3, 1, 0.96193977, 0.85355339, 0.69134172, 0.5, 0.30865828, 0.14644661, 0.03806023],
        ),
    ],
)
def test_schedules_by_hand(schedule, expected):
    config = OptimizerConfig(lr=1.0, schedule=schedule, warmup=0.2)
    assert [scheduled_lr(config, step, 10) for step in range(10)] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_without_warm_up_the_first_step_is_at_the_peak(schedule):
    config = OptimizerConfig(lr=0.5, schedule=schedule, warmup=0.0)
    assert scheduled_lr(config, 0, 7) == scheduled_lr(config, 0, 1) == 0.5
    assert all(scheduled_lr(config, step, 7) > 0 for step in range(7))


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_three_steps_are_torchs_adamw(max_grad_norm):
    one = role()
    by_hand = copy.deepcopy(one.backbone.model)
    config = OptimizerConfig(
        lr=1e-2, schedule="linear", warmup=0.0, weight_decay=0.1, betas=(0.8, 0.9), max_grad_norm=max_grad_norm
    )
    learner, batch = Learner(one, config, total_steps=3), batch_of(one)
    norms = Norms(tokens=float(batch.response_mask.sum()), sequences=6)
    adamw = torch.optim.AdamW(by_hand.parameters(), lr=1e-2, betas=(0.8, 0.9), weight_decay=0.1, fused=False)
    for step in range(3):
        metrics = learner.step([(["all"], batch)], nll(one), norms)
        for group in adamw.param_groups:
            group["lr"] = 1e-2 * (1 - step / 3)
        shifted = torch.log_softmax(by_hand(batch.tokens).logits[:, :-1], dim=-1)
        chosen = shifted.gather(-1, batch.tokens[:, 1:, None]).squeeze(-1)[batch.response_mask[:, 1:]]
        loss = -chosen.mean()
        adamw.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in by_hand.parameters() if p.grad is not None]).norm()
        if max_grad_norm is not None:
            assert norm > max_grad_norm
            for p in by_hand.parameters():
                assert p.grad is not None
                p.grad *= max_grad_norm / norm
        adamw.step()
        assert metrics["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
        assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
        assert metrics["lr"] == pytest.approx(1e-2 * (1 - step / 3))
    for (name, mine), theirs in zip(one.backbone.model.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_metrics_are_sums_of_shares():
    one = role()
    learner, batch = Learner(one, OptimizerConfig(lr=1e-4), 1), batch_of(one)
    norms = Norms(tokens=float(batch.response_mask.sum()), sequences=6)
    parts = [([str(i)], part) for i, (_, part) in enumerate(batch.micro_batches(1))]
    assert len(parts) == 6
    assert learner.step(parts, nll(one), norms)["share"] == pytest.approx(1.0)
    assert learner.steps == 1


def snapshot(learner: Learner) -> dict[str, torch.Tensor]:
    return learner.role.state() | learner.optimizer_state()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_loss_names_its_samples_and_changes_nothing(bad):
    one = role()
    learner, batch = Learner(one, OptimizerConfig(lr=1e-4), 5), batch_of(one)
    norms = Norms(tokens=float(batch.response_mask.sum()), sequences=6)
    learner.step([(["all"], batch)], nll(one), norms)
    before = snapshot(learner)
    parts = [([f"row-{int(i)}" for i in index], part) for index, part in batch.micro_batches(60)]
    assert len(parts) > 2

    def loss(part: Batch, norms: Norms):
        value, shares = nll(one)(part, norms)
        return (value * bad if part is parts[1][1] else value), shares

    with pytest.raises(NonFiniteError, match=r"the loss became (nan|inf) at optimiser step 1") as error:
        learner.step(parts, loss, norms)
    assert all(name in str(error.value) for name in parts[1][0])
    assert not any(name in str(error.value) for name in parts[0][0])
    assert "No weight was changed" in str(error.value)
    after = snapshot(learner)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_bad_gradient_changes_nothing():
    one = role()
    learner, batch = Learner(one, OptimizerConfig(lr=1e-4), 5), batch_of(one)
    before = snapshot(learner)

    def loss(part: Batch, norms: Norms):
        value = one.logprobs(part).sum()
        return (value - value.detach()).abs().sqrt(), {}  # 0, with an infinite slope

    with pytest.raises(NonFiniteError, match=r"gradient norm became nan at optimiser step 0 \(samples all\)"):
        learner.step([(["all"], batch)], loss, Norms(tokens=1, sequences=1))
    after = snapshot(learner)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_bad_gradient_of_the_second_learner_changes_neither():
    one = role()
    head = one.with_head()
    first, second = Learner(one, OptimizerConfig(lr=1e-4), 5), Learner(head, OptimizerConfig(lr=1e-4), 5)
    batch = batch_of(one)
    before = snapshot(first), snapshot(second)

    def loss(part: Batch, norms: Norms):
        hidden = one.hidden(part)
        values = head.values(part, hidden=hidden.detach()).sum()
        return one.logprobs(part).sum() + (values - values.detach()).abs().sqrt(), {}

    with pytest.raises(NonFiniteError, match=r"gradient norm became nan at optimiser step 0 \(samples all\)"):
        first.step([(["all"], batch)], loss, Norms(tokens=1, sequences=1), also=[second])
    for old, new in zip(before, (snapshot(first), snapshot(second)), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)


def test_long_list_of_bad_samples_is_cut():
    one = role()
    learner, batch = Learner(one, OptimizerConfig(lr=1e-4), 5), batch_of(one)
    with pytest.raises(NonFiniteError, match=r"involved: s0, s1, .*s7 …\."):
        learner.step(
            [([f"s{i}" for i in range(20)], batch)],
            lambda part, norms: (one.logprobs(part).sum() * float("nan"), {}),
            Norms(tokens=1, sequences=1),
        )


def test_next_step_is_the_same_after_saving_and_loading():
    one, two = role(), role()
    batch = batch_of(one)
    norms = Norms(tokens=float(batch.response_mask.sum()), sequences=6)
    first = Learner(one, OptimizerConfig(lr=1e-2), 5)
    for _ in range(2):
        first.step([(["all"], batch)], nll(one), norms)
    second = Learner(two, OptimizerConfig(lr=1e-2), 5)
    two.load_state(one.state())
    second.load_optimizer_state(first.optimizer_state())
    assert second.steps == 2
    for learner, mine in ((first, one), (second, two)):
        learner.step([(["all"], batch)], nll(mine), norms)
    a, b = snapshot(first), snapshot(second)
    assert all(torch.equal(a[name], b[name]) for name in a)
