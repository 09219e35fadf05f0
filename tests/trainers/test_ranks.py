"""Two and three ranks train what one rank trains, and say who is missing when one does not come."""

import socket
import time
from pathlib import Path

import pytest
import torch

from tests.ranks import die, on_ranks
from tests.trainers.ranked import CASES, apart, check_equal, conversations, sft_until
from trimtab.errors import ConfigError, DataError, RankError
from trimtab.models import AdapterConfig, Role
from trimtab.testing import tiny_backbone
from trimtab.trainers import ALONE, Checkpoints, Group, Place, Ranks, Session, SftConfig, train_sft

QUICK = ["sft full tied", "kto lora", "ppo lora ptx", "nash md", "xpo", "rloo ensemble"]


def test_two_ranks_equal_one():
    check_equal([2], QUICK, double=True)


@pytest.mark.slow
@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
def test_every_trainer_on_two_and_three_ranks_equals_one(double: bool):
    check_equal([2, 3], list(CASES), double)


# What a group does ------------------------------------------------------------------------


def meet(group: Group) -> dict:
    """Every method of a group."""
    tensors = [torch.full((2,), float(group.rank + 1)), torch.ones(3, dtype=torch.float64)]
    group.sum_("sums", tensors)

    def refused() -> int:
        if group.rank == 1:
            raise DataError("rank 1 does not like it")
        return 0

    def alone() -> str:
        assert group.first
        return "from the first"

    errors = []
    try:
        group.gather("refused", refused)
    except DataError as error:
        errors.append(str(error))
    return {
        "share": group.share("abcde"),
        "gather": group.gather("ranks", lambda: group.rank),
        "once": group.once("first", alone),
        "spread": group.spread("squares", range(5), lambda own: [x * x for x in own]),
        "empty": group.spread("one item", [7], lambda own: own),
        "sums": [t.tolist() for t in tensors],
        "errors": errors,
    }


def test_methods_of_a_group():
    ranks = on_ranks(2, meet)
    shares = [r.pop("share") for r in ranks]
    assert shares == [["a", "c", "e"], ["b", "d"]]
    expected = {
        "gather": [0, 1],
        "once": "from the first",
        "spread": [0, 1, 4, 9, 16],
        "empty": [7],
        "sums": [[3.0, 3.0], [2.0, 2.0, 2.0]],
        "errors": ["rank 1 does not like it"],
    }
    assert ranks == [expected, expected]


def test_a_group_of_one_is_a_group():
    assert meet(ALONE)["share"] == list("abcde") and ALONE.spread("x", [1, 2], lambda own: own) == [1, 2]
    assert ALONE.first and ALONE.gather("x", lambda: 3) == [3]


# Who is missing ---------------------------------------------------------------------------


def in_trouble(group: Group, kind: str) -> None:
    group.gather("the first meeting", lambda: None)
    if group.rank == 1:
        if kind == "killed":
            die()
        if kind == "late":
            time.sleep(5)
        if kind == "elsewhere":
            group.gather("something else", lambda: None)
        if kind == "failed":
            raise ValueError("its own mistake")
    group.gather("the second meeting", lambda: None)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("killed", ["rank 1", "the first meeting", "the second meeting"]),
        pytest.param(
            "late",
            ["rank 1 did not come", "'the second meeting'", "the last phase of rank 1 is 'the first meeting'"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "elsewhere", ["rank 0 at 'the second meeting', rank 1 at 'something else'"], marks=pytest.mark.slow
        ),
        pytest.param("failed", ["rank 1 stopped", "ValueError: its own mistake"], marks=pytest.mark.slow),
    ],
)
def test_the_others_name_the_rank_and_the_phase(kind: str, says: list[str]):
    start = time.monotonic()
    error = on_ranks(2, in_trouble, kind, deadline=3.0)[0]
    assert isinstance(error, RankError), error
    for part in says:
        assert part in str(error)
    assert time.monotonic() - start < 30


def place(**changes) -> Place:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = {"rank": 0, "size": 2, "local_rank": 0, "local_size": 2, "host": "127.0.0.1", "port": port}
    return Place(**(values | {"serves": True, "attempt": "0"} | changes))


def test_a_rank_that_never_starts_is_named():
    with pytest.raises(RankError, match=r"rank 1 of 2 did not start within 0\.5 s"):
        Ranks(place(), deadline=0.5)


def test_nobody_at_the_meeting_place():
    with pytest.raises(RankError, match=r"rank 1 did not reach 127\.0\.0\.1:\d+ within 1 s"):
        Ranks(place(rank=1, serves=False), deadline=1.0)


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} is in use.*MASTER_PORT"):
            Ranks(place(port=port), deadline=1.0)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"RANK": "1"}, "WORLD_SIZE is None"),
        ({"RANK": "one", "WORLD_SIZE": "2", "MASTER_PORT": "1"}, "RANK is 'one'"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_PORT": "1"}, "RANK is 2 and WORLD_SIZE 2"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1", "LOCAL_RANK": "gpu"}, "LOCAL_RANK is 'gpu'"),
    ],
)
def test_an_environment_that_contradicts_itself(environment: dict, says: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert Place.from_environment() is None
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=says):
        Place.from_environment()


# Checkpoints ------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_ranks_then_one_then_three_end_where_one_ends(tmp_path: Path):
    whole = sft_until(ALONE, tmp_path / "whole", None)
    first = on_ranks(2, sft_until, tmp_path / "parts", 2)
    assert [row["step"] for row in first[0]["metrics"]] == [1, 2]
    second = sft_until(ALONE, tmp_path / "parts", 4)
    assert [row["step"] for row in second["metrics"]] == [3, 4]
    third = on_ranks(3, sft_until, tmp_path / "parts", None)
    assert [row["step"] for row in third[2]["metrics"]] == [5, 6]
    assert apart(whole, third[0]) <= 1e-6


def test_a_run_whose_rank_was_killed_continues(tmp_path: Path):
    whole = on_ranks(2, sft_until, tmp_path / "whole", None)[0]
    left, killed = on_ranks(2, sft_until, tmp_path / "parts", None, 3)
    assert killed == "exit -9"
    assert isinstance(left, RankError) and "rank 1" in str(left) and "step 3" in str(left)
    again = on_ranks(2, sft_until, tmp_path / "parts", None)[0]
    assert again["metrics"][0]["step"] == 3  # the last checkpoint is the one after step 2
    assert apart(whole, again) == 0.0


def unequal(group: Group, folder: Path) -> None:
    """One rank's weights are changed behind its back."""
    role = Role.trainable(tiny_backbone(), "sft", AdapterConfig(rank=4, alpha=8), seed=1)

    def log(metrics: dict) -> None:
        if group.rank == 1:
            with torch.no_grad():
                next(iter(role.parameters().values()))[0, 0] += 1e-6

    session = Session(log=log, checkpoints=Checkpoints(folder, "f", every=1, group=group), group=group)
    train_sft(role, conversations(role.backbone.chat, 4), SftConfig(batch=2), seed=0, session=session)


def test_ranks_that_drift_apart_are_refused(tmp_path: Path):
    for error in on_ranks(2, unequal, tmp_path / "c"):
        assert isinstance(error, RankError) and "weights of rank 1 differ" in str(error), error
    assert not list((tmp_path / "c").glob("step-*"))
