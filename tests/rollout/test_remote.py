"""Samplers and scorers in other processes, with threads in place of processes: losses, joins, versions, deadlines."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from tests.kit import stir
from trimtab.errors import ConfigError, DataError, RankError
from trimtab.models import AdapterConfig, Role
from trimtab.records import Prompt
from trimtab.rollout import (
    Host,
    LocalSampler,
    Pool,
    RayConfig,
    RemoteSampler,
    RemoteScorer,
    SamplerConfig,
    SamplerWorker,
    ScorerWorker,
    WorkerLostError,
    pool,
)
from trimtab.rollout.ray import check_ray, load_ray
from trimtab.testing import prompts, tiny_backbone

FACTS = {"trimtab": "1", "model": "m"}
ADAPTER = AdapterConfig(rank=4, alpha=8)
CONFIG = SamplerConfig(max_new_tokens=8, slots=16)
BUILDING = threading.Lock()


class Threaded:
    """A worker whose process is a thread; ``dies(method, calls)`` True: it is lost in this call, and restarted."""

    def __init__(
        self, name: str, build: Callable[[], Any], *, dies: Callable[[str, int], bool] = lambda method, calls: False,
        facts: dict[str, str] = FACTS,
    ) -> None:  # fmt: skip
        self.name, self.dies = name, dies
        self._new = lambda: Host(build, lambda: facts, lambda: f"host of {name}")
        self._host, self._executor, self.calls = self._new(), ThreadPoolExecutor(1), 0

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        def work() -> Any:
            self.calls += 1
            if self.dies(method, self.calls):
                self._host = self._new()
                raise WorkerLostError("killed")
            return getattr(self._host, method)(*arguments)

        return self._executor.submit(work)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PAUSE", 0.02)


class Squares:
    def of(self, number: int) -> int:
        return number * number

    def refused(self) -> None:
        raise DataError("not this one")


def squares(count: int, **settings: Any) -> list[Threaded]:
    return [Threaded(f"worker {i}", Squares, **settings) for i in range(count)]


def role() -> Role:
    with BUILDING:  # random numbers are drawn from a generator that all threads share
        return Role.trainable(tiny_backbone(), "policy", ADAPTER, seed=1)


def samplers(count: int, **settings: Any) -> list[Threaded]:
    def build() -> SamplerWorker:
        own = role()
        return SamplerWorker(own, LocalSampler(own.backbone, CONFIG))

    return [Threaded(f"sampler {i}", build, **settings) for i in range(count)]


# A pool -----------------------------------------------------------------------------------


def test_every_job_is_done_once_whoever_is_lost():
    for every in (3, 5, 7):
        votes: list[str] = []
        workers = squares(3, dies=lambda method, calls, every=every: calls % every == 0)
        jobs = Pool(workers, FACTS, say=votes.append, deadline=20)
        jobs.start()
        assert jobs.map("squares", "of", [(i,) for i in range(20)]) == [i * i for i in range(20)]
        assert jobs.map("squares", "of", []) == []
        assert jobs.losses > 0 and any("was lost during squares (killed)" in text for text in votes)


def test_workers_join_and_leave_between_jobs():
    lines: list[str] = []
    here = [False]
    first = Threaded("sampler 0", Squares, dies=lambda method, calls: here[0])
    later = Threaded("sampler 1", Squares, dies=lambda method, calls: not here[0])
    jobs = Pool([first, later], FACTS, needed=1, say=lines.append, deadline=20)
    jobs.start()
    assert jobs.map("squares", "of", [(2,)]) == [4]
    here[0] = True  # one machine goes, another one comes
    assert jobs.map("squares", "of", [(i,) for i in range(4)]) == [0, 1, 4, 9]
    assert any(text.startswith("sampler 1 on host of sampler 1 joins") for text in lines)
    assert any(text.startswith("sampler 0 on host of sampler 0 was lost") for text in lines)


def test_a_job_that_ends_every_worker_is_named():
    jobs = Pool(squares(2, dies=lambda method, calls: method == "call"), FACTS, deadline=20)
    with pytest.raises(RankError, match=r"job 1 of 1 of squares ended 5 workers.*scale\.ray\.chunk"):
        jobs.map("squares", "of", [(1,)])


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"model": "other"}, r"sampler 0 on host of sampler 0 has model other and the learner m"),
        ({"trimtab": "2"}, r"has trimtab 2 and the learner 1"),
    ],
)
def test_a_worker_with_another_model_or_version_is_refused(facts: dict[str, str], says: str):
    with pytest.raises(RankError, match=says):
        Pool([Threaded("sampler 0", Squares, facts=FACTS | facts)], FACTS, deadline=20).start()


def test_errors_of_workers_and_deadlines():
    jobs = Pool(squares(1), FACTS, deadline=20)
    with pytest.raises(DataError, match="not this one"):
        jobs.map("squares", "refused", [()])
    gone = Pool(squares(2, dies=lambda method, calls: True), FACTS, deadline=0.2)
    with pytest.raises(RankError, match=r"within 0\.2 s \(scale\.deadline\) in phase 'start': worker 0 .*; worker 1 "):
        gone.start()


# Answers ----------------------------------------------------------------------------------


def test_answers_are_those_of_one_process():
    """Equal seeds, equal answers: bit for bit where chunks are equal, and in every text otherwise."""
    policy = stir(role())
    questions = [*prompts(5), prompts(5)[1]]  # one prompt twice: its answers must differ
    arguments: dict[str, Any] = {"adapter": "policy", "seed": 3, "group": 2, "weight_version": 7}
    local = LocalSampler(policy.backbone, CONFIG).generate(questions, **arguments)

    def drawn(chunk: int, workers: list[Threaded]) -> list[Any]:
        jobs = Pool(workers, FACTS, deadline=60)
        return RemoteSampler(jobs, policy, lambda value: value, chunk=chunk).generate(questions, **arguments)

    assert drawn(len(questions), samplers(1)) == local
    apart = drawn(2, samplers(2))
    assert [replace(r, logprobs=[]) for r in apart] == [replace(r, logprobs=[]) for r in local]
    for one, other in zip(apart, local, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    # Neither the number of samplers nor a lost one changes a bit.
    assert drawn(2, samplers(1)) == apart
    assert drawn(2, samplers(2, dies=lambda method, calls: calls in (2, 4))) == apart


def test_weights_are_sent_once_per_version_and_a_restarted_sampler_gets_them():
    policy, sent = stir(role()), []

    def put(value: Any) -> Any:
        sent.append(value)
        return value

    remote = RemoteSampler(Pool(samplers(2), FACTS, deadline=60), policy, put, chunk=1)
    questions = prompts(4)
    first = remote.generate(questions, adapter="policy", seed=0, weight_version=0)
    again = remote.generate(questions, adapter="policy", seed=0, weight_version=0)
    assert first == again and len(sent) == 1
    waiting = remote.start(questions, adapter="policy", seed=0, weight_version=0)
    stir(policy, seed=1)  # the learner goes on meanwhile
    assert waiting() == first
    other = remote.generate(questions, adapter="policy", seed=0, weight_version=1)
    local = LocalSampler(policy.backbone, CONFIG).generate(questions, adapter="policy", seed=0, weight_version=1)
    assert len(sent) == 2 and [r.tokens for r in other] == [r.tokens for r in local]
    assert [r.tokens for r in other] != [r.tokens for r in first]
    with pytest.raises(ConfigError, match="hold the weights of 'policy'"):
        remote.generate(questions, adapter=None, seed=0)


def test_answers_of_other_weights_are_refused():
    class Stale(SamplerWorker):
        def draw(self, weights: Any, version: int, prompts: Sequence[Prompt], seed: int, group: int) -> Any:
            return super().draw(weights, 3, prompts, seed, group)

    def build() -> Stale:
        own = role()
        return Stale(own, LocalSampler(own.backbone, CONFIG))

    remote = RemoteSampler(Pool([Threaded("sampler 0", build)], FACTS), role(), lambda value: value, chunk=4)
    with pytest.raises(RankError, match="drew with version 3 and version 4 was asked for"):
        remote.generate(prompts(1), adapter="policy", seed=0, weight_version=4)


def test_rewards_keep_the_answers_of_a_prompt_together():
    policy = role()
    rollouts = LocalSampler(policy.backbone, CONFIG).generate(prompts(5), adapter=None, seed=0, group=3)
    sizes: list[int] = []

    def score(own: Any) -> dict[str, list[Any]]:
        sizes.append(len(own))
        return {"length": [float(len(r.tokens)) for r in own], "steps": [[(0, 1.0)] for _ in own]}

    workers = [Threaded(f"scorer {i}", lambda: ScorerWorker(score)) for i in range(2)]
    assert RemoteScorer(Pool(workers, FACTS), chunk=2)(rollouts) == score(rollouts)
    assert sorted(sizes) == [3, 6, 6, 15]


# Ray --------------------------------------------------------------------------------------


def test_what_is_refused_before_a_run(monkeypatch: pytest.MonkeyPatch):
    class Fake:
        __version__ = "2.60.0"

        @staticmethod
        def is_initialized() -> bool:
            return False

    monkeypatch.setattr("trimtab.rollout.ray.import_module", lambda name: Fake)
    with pytest.raises(ConfigError, match=r"asks for 900 samplers and 2 scorers with 1 cores each, and this machine"):
        check_ray(RayConfig(samplers=900, scorers=2))
    with pytest.raises(RankError, match=r"127\.0\.0\.1:1 does not answer within 10 s \(phase 'connect'"):
        check_ray(RayConfig(address="127.0.0.1:1"))
    Fake.__version__ = "2.9.3"
    with pytest.raises(ConfigError, match=r"Ray is 2\.9\.3, expected 2\.50 or newer"):
        load_ray()

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("trimtab.rollout.ray.import_module", missing)
    with pytest.raises(ConfigError, match=r"Ray is not installed.*\[ray\]"):
        load_ray()
