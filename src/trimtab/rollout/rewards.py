"""Several named rewards as one scorer: functions, HTTP endpoints and reward models, each normalised and clipped.

component = min(max(clip((raw − mean)/std, ±clip), floor), cap);   the trainer adds weight · component over all names.
"""

import asyncio
import inspect
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from trimtab import http
from trimtab.config import LARGEST, Config
from trimtab.errors import NonFiniteError, ScoringError
from trimtab.records import Rollout

RewardFunction = Callable[[Sequence[Rollout]], Any]
"""Rollouts → one number per rollout; may be ``async``."""

RETRIES = http.Retries(attempts=3)
"""How often a request to an endpoint is attempted before its failure stops the run."""


class RewardComponent(Config):
    """What all named rewards have in common."""

    weight: float = 1.0
    """Its share of the total; negative for a cost."""
    mean: float = 0.0
    """Subtracted from the raw number."""
    std: float = Field(default=1.0, gt=0.0)
    """The difference is divided by this."""
    clip: float | None = Field(default=None, gt=0.0)
    """The quotient is clipped to ± this; None: not clipped."""
    floor: float | None = None
    """Lower values count as this, for example 0 for a penalty that begins at ``mean``; None: no lower limit."""
    cap: float | None = None
    """Higher values count as this, so that more earns nothing: the point beyond which a reward is no longer trusted.
    None: no upper limit."""

    @model_validator(mode="after")
    def _floor_below_cap(self) -> Self:
        if self.floor is not None and self.cap is not None and self.floor >= self.cap:
            raise ValueError(f"floor is {self.floor:g} and cap {self.cap:g}: nothing lies between them; raise cap")
        return self

    @property
    def deadline(self) -> float | None:
        """Seconds after which scoring a batch has failed; None: never."""
        return None


class ModelReward(RewardComponent):
    """The reward model that the ``reward`` stage trained; already normalised over its own training answers."""

    kind: Literal["model"] = "model"
    """Kind of reward."""
    objective: str | None = Field(default=None, min_length=1)
    """With ``reward.objectives``: the objective that this reward scores; None: the reward model has one objective."""


class FunctionReward(RewardComponent):
    """A Python function, plain or async."""

    kind: Literal["function"] = "function"
    """Kind of reward."""
    path: str
    """Dotted path, for example ``trimtab.feedback.verifiers.arithmetic``; it takes rollouts and returns one number for
    each."""
    timeout: float = Field(default=60.0, gt=0.0)
    """Seconds a batch may take."""
    steps: str | None = Field(default=None, min_length=1)
    r"""Process rewards: what separates the steps of an answer, for example ``"\n"``. The function then returns a list
    per answer, one number for each of its :func:`split_steps`, and each counts at its step's last token. None: one
    number per answer."""

    @property
    def deadline(self) -> float:
        """The timeout."""
        return self.timeout


class HttpReward(RewardComponent):
    """An endpoint that receives prompts and answers and returns numbers.

    The request is ``{"prompts", "completions", "finish_reasons", "metadata"}``, each a list with an entry per answer;
    the reply ``{"rewards": [numbers]}``.
    """

    kind: Literal["http"] = "http"
    """Kind of reward."""
    url: str = Field(pattern=r"^https?://")
    """URL to which batches are posted."""
    timeout: float = Field(default=60.0, gt=0.0)
    """Seconds without data from the endpoint after which a request fails. A request is tried three times; all attempts
    together take at most three times this."""

    @property
    def deadline(self) -> float:
        """Seconds for all attempts together."""
        return RETRIES.attempts * self.timeout


class ProcessReward(RewardComponent):
    """The process reward model that the ``process`` stage trained: P(right) for each step of an answer."""

    kind: Literal["process"] = "process"
    """Kind of reward."""
    score: Literal["steps", "product", "minimum", "last", "mean"] = "steps"
    """``steps``: each step earns P(right) − 1 at its last token, so that more steps earn nothing. Combine it with an
    outcome reward; otherwise the policy learns to take no steps. With the other values, the answer earns one number at
    its end: :func:`trimtab.algos.process_score`."""


RewardSource = Annotated[ModelReward | FunctionReward | HttpReward | ProcessReward, Field(discriminator="kind")]
"""One named reward of a recipe."""


def split_steps(text: str, separator: str) -> list[str]:
    r"""The steps of an answer: its non-blank pieces between separators. A blank answer is one step.

    >>> split_steps("2 + 2 = 4\n\nso 4", "\n")
    ['2 + 2 = 4', 'so 4']
    """
    return [part for part in text.split(separator) if part.strip()] or [text]


class NamedRewards:
    """Calls every component and returns its normalised, clipped numbers by name.

    Args:
        sources: settings by name.
        functions: the raw function of each name.
        decode: tokens of an answer → its text; needed if a component has ``steps``.
        weights: weight of each component in the total, see :func:`trimtab.records.weights.reward_weights`; None: as
            in its settings.
    """

    def __init__(
        self,
        sources: Mapping[str, RewardComponent],
        functions: Mapping[str, RewardFunction],
        decode: Callable[[Sequence[int]], str] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.sources, self.functions, self.decode = dict(sources), dict(functions), decode
        own = {name: source.weight for name, source in self.sources.items()}
        self.weights = own | dict(weights or {})
        """Weight of each component in the total."""

    def __call__(self, rollouts: Sequence[Rollout]) -> dict[str, list[Any]]:
        """Score rollouts: a number per answer, or (place, number) pairs if the component has step rewards.

        Raises:
            ScoringError: a component raised, took too long, or returned the wrong number of numbers.
            NonFiniteError: a number is NaN or infinite; names the sample.
        """
        return {name: self._component(name, source, rollouts) for name, source in self.sources.items()}

    def whole(self, rollouts: Sequence[Rollout]) -> list[dict[str, float]]:
        """Each answer's number by component; the rewards of an answer's steps are summed."""
        parts = self(rollouts)
        return [
            {
                name: sum(number for _, number in values[i]) if isinstance(values[i], list) else values[i]
                for name, values in parts.items()
            }
            for i in range(len(rollouts))
        ]

    def total(self, whole: Mapping[str, float]) -> float:
        """Weighted sum of an answer's components."""
        return sum(self.weights[name] * value for name, value in whole.items())

    def _component(self, name: str, source: RewardComponent, rollouts: Sequence[Rollout]) -> list[Any]:
        if not rollouts:
            return []
        function = source if isinstance(source, FunctionReward) else None
        limit = source.clip or math.inf

        def shaped(value: float) -> float:
            shaped = min(max((value - source.mean) / source.std, -limit), limit)
            shaped = max(shaped, -math.inf if source.floor is None else source.floor)
            shaped = min(shaped, math.inf if source.cap is None else source.cap)
            if not abs(shaped * source.weight) < LARGEST:
                raise NonFiniteError(
                    f"reward {name!r} is {shaped:g} after its mean and std, and weighs {source.weight:g}; expected "
                    f"a product below {LARGEST:g}: correct rewards.{name}"
                )
            return shaped

        values = call(name, self.functions[name], rollouts, source.deadline)
        if isinstance(source, ProcessReward) and source.score == "steps":
            return [
                [
                    (end, shaped(x))
                    for (end, _), x in zip(row, numbers(name, [x for _, x in row], [r] * len(row)), strict=True)
                ]
                for row, r in zip(values, rollouts, strict=True)
            ]
        if function is None or function.steps is None:
            return [shaped(value) for value in numbers(name, values, rollouts)]
        assert self.decode is not None
        placed = []
        for rollout, rewards in zip(rollouts, one_per_answer(name, values, rollouts), strict=True):
            ends = step_ends(rollout, function.steps, self.decode)
            steps = _listed(name, rewards)
            if steps is None or len(steps) != len(ends):
                given = f"{rewards!r:.100} ({type(rewards).__name__})" if steps is None else f"{len(steps)} numbers"
                raise ScoringError(
                    f"reward {name!r} gave {given} for the {len(ends)} steps of sample {rollout.id}; return one number "
                    "for each of trimtab.rollout.split_steps(rollout.text, separator)"
                )
            pairs = zip(ends, steps, strict=True)
            placed.append([(end, shaped(finite_reward(name, value, rollout.id))) for end, value in pairs])
        return placed


def step_ends(rollout: Rollout, separator: str, decode: Callable[[Sequence[int]], str]) -> list[int]:
    """Place in ``rollout.tokens`` of the last token of each of the answer's :func:`split_steps`."""
    return ends_of(rollout.tokens, rollout.text, split_steps(rollout.text, separator), decode)


def ends_of(
    tokens: Sequence[int], text: str, steps: Sequence[str], decode: Callable[[Sequence[int]], str]
) -> list[int]:
    """Place in ``tokens`` of the last token of each step; the steps are in ``text`` in order."""
    ends, count, after = [], 0, 0
    for step in steps:
        after = text.index(step, after) + len(step)
        wanted = text[:after].rstrip()
        while count < len(tokens) and not decode(tokens[:count]).startswith(wanted):
            count += 1
        ends.append(max(count - 1, 0))
    return ends


def call(name: str, function: RewardFunction, rollouts: Sequence[Rollout], timeout: float | None) -> Any:
    """Call a plain or async reward function; with a timeout, in a thread of its own.

    Raises:
        ScoringError: it raised, or did not return in time.
    """

    def run() -> Any:
        result = function(rollouts)
        if inspect.isawaitable(result):
            result = asyncio.run(_wait(result))
        return list(result) if isinstance(result, Iterator) else result  # a generator runs here, within the limit

    if timeout is None:
        return run()
    box: dict[str, Any] = {}

    def work() -> None:
        try:
            box["value"] = run()
        except BaseException as error:  # handed to the caller below
            box["error"] = error

    thread = threading.Thread(target=work, daemon=True, name=f"reward {name}")
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise ScoringError(
            f"reward {name!r} took longer than {timeout:g} s for {len(rollouts)} answers; raise rewards.{name}.timeout "
            "or make the function faster. Nothing was trained on this batch"
        )
    if "error" in box:
        error = box["error"]
        if isinstance(error, ScoringError | NonFiniteError):
            raise error
        raise ScoringError(f"reward {name!r} raised {type(error).__name__}: {error}") from error
    return box["value"]


async def _wait(awaitable: Any) -> Any:
    return await awaitable


def numbers(name: str, values: Any, rollouts: Sequence[Rollout]) -> list[float]:
    """A reward function's return value as one finite float per rollout.

    Raises:
        ScoringError: not numbers, or not as many as rollouts.
        NonFiniteError: NaN, infinite or too large; names the sample.
    """
    rewards = one_per_answer(name, values, rollouts)
    return [finite_reward(name, value, rollout.id) for value, rollout in zip(rewards, rollouts, strict=True)]


def one_per_answer(name: str, values: Any, rollouts: Sequence[Rollout]) -> list[Any]:
    """A reward function's return value as a list with one entry per rollout.

    Raises:
        ScoringError: text, a mapping or a set, which have no order of answers; one value; or another number of values.
    """
    rewards = _listed(name, values)
    if rewards is None:
        raise ScoringError(
            f"reward {name!r} returned {values!r:.100} ({type(values).__name__}); expected one number per answer: mend "
            "the reward function"
        )
    if len(rewards) != len(rollouts):
        raise ScoringError(
            f"reward {name!r} has {len(rewards)} values for {len(rollouts)} answers; expected one number per answer: "
            "mend the reward function"
        )
    return rewards


def _listed(name: str, values: Any) -> list[Any] | None:
    """The values in order; None if ``values`` is text, a mapping, a set or a single value."""
    if isinstance(values, str | bytes | Mapping | Set):
        return None
    try:
        entries = iter(values)
    except TypeError:
        return None
    try:
        return list(entries)
    except Exception as error:  # a generator's
        raise ScoringError(f"reward {name!r} raised {type(error).__name__}: {error}") from error


def finite_reward(name: str, value: Any, sample: str) -> float:
    """A reward as a finite float.

    Args:
        name: name of the reward.
        value: the function's return value for this answer.
        sample: name of the answer, for messages.

    Raises:
        ScoringError: it is not a number; text is never accepted as one.
        NonFiniteError: it is NaN, infinite or too large to compute with.
    """
    try:
        if isinstance(value, str | bytes) or not (hasattr(value, "__float__") or hasattr(value, "__index__")):
            raise TypeError  # NumPy's text has __float__
        reward = float(value)
    except OverflowError:  # an integer larger than any float
        reward = math.inf
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor of several numbers
        raise ScoringError(
            f"reward {name!r} is {value!r:.100} for sample {sample}; expected one number per answer: mend the reward "
            "function"
        ) from error
    if not abs(reward) < LARGEST:
        raise NonFiniteError(
            f"reward {name!r} is {reward:g} for sample {sample}; expected a finite number below {LARGEST:g}: mend the "
            "reward function and run the same command again"
        )
    return reward


def http_reward(source: HttpReward) -> RewardFunction:
    """A reward function that posts a batch to an endpoint."""

    def post(rollouts: Sequence[Rollout]) -> list[float]:
        body = {
            "prompts": [[m.model_dump(exclude_none=True) for m in r.prompt.messages] for r in rollouts],
            "completions": [r.text for r in rollouts],
            "finish_reasons": [r.finish_reason for r in rollouts],
            "metadata": [r.prompt.metadata for r in rollouts],
        }
        data = json.dumps(body, default=str).encode()
        headers = {"Content-Type": "application/json"}
        try:
            reply = http.post(source.url, data, headers=headers, timeout=source.timeout, retries=RETRIES)
        except http.PostError as error:
            raise ScoringError(
                f"{source.url}: {error} (attempt {error.attempt} of {RETRIES.attempts}); check that the endpoint is up"
            ) from error
        try:
            return json.loads(reply)["rewards"]
        except (KeyError, TypeError, ValueError) as error:
            raise ScoringError(f'{source.url}: expected {{"rewards": [numbers]}}, got {error!r}') from error

    return post
