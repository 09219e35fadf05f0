"""The answers of a step: drawn by the policy and by its opponent, or read from disk after an interruption."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from trimtab.algos import group_has_spread
from trimtab.errors import CheckpointError
from trimtab.models import FrozenStates, Role
from trimtab.models.kernels import kernels
from trimtab.records import Prompt, Rollout
from trimtab.rollout import BackgroundSampler, Opponent, Sampler, ValueHead, load_rollouts, save_rollouts
from trimtab.trainers.checkpoint import step_seed
from trimtab.trainers.group import Group
from trimtab.trainers.learner import Learner
from trimtab.trainers.rl_ahead import Ahead, check_version
from trimtab.trainers.rl_config import RlConfig
from trimtab.trainers.rl_optional import critic_on_policy
from trimtab.trainers.rl_step import Step, step_name
from trimtab.trainers.scoring import Scored, answer_scores
from trimtab.trainers.shares import drawn_by_share


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Draws the answers of a run."""

    config: RlConfig
    """Settings of the run."""
    prompts: Sequence[Prompt]
    """All prompts of the run."""
    learner: Learner
    """The policy's."""
    critic: Role | None
    """The critic; the sampler computes its values if its head is on the policy's states."""
    sampler: Sampler
    """Draws the policy's answers."""
    opponent: Opponent | None
    """Draws the answers that the policy's are compared with."""
    states: FrozenStates
    """Store for the states of frozen layers."""
    samples: Path | None
    """Folder for the answers; None: they are not saved."""
    seed: int
    """Seed of the run."""
    group: Group
    """The processes that divide the prompts."""
    ahead: Ahead | None
    """The next step's answers, with ``one_step_off``; None: a step's answers are drawn when it begins."""

    def step_prompts(self, step: Step) -> list[Prompt]:
        """The prompts of a step."""
        return prompts_of_step(self.prompts, self.config.prompts, step.number, self.seed)

    def answers(self, step: Step, prompts: Sequence[Prompt], suffix: str = "") -> list[Rollout]:
        """The policy's answers, ordered by prompt. ``suffix`` is added to the name of their file."""
        if self.ahead is not None:
            return self._drawn_before(step, prompts)
        draw = partial(
            self.sampler.generate,
            adapter=self.learner.role.adapter,
            seed=step.seed,
            group=self.config.group,
            weight_version=self.learner.steps,
            states=self.states,
            value_head=self._value_head(),
        )
        return self._drawn(step, "answers", prompts, draw, suffix, self.states)

    def begin_next(self, step: Step) -> None:
        """Start drawing the next step's answers with the current weights (``one_step_off``)."""
        number = step.number + 1
        if self.ahead is None or number == self.config.steps:
            return
        prompts = prompts_of_step(self.prompts, self.config.prompts, number, self.seed)
        self.ahead.begin(number, self.learner.steps, self._begin(number, prompts))

    def finish_next(self, step: Step) -> None:
        """Wait for the answers of the next step, and save them."""
        rollouts = [] if self.ahead is None else self.ahead.wait()
        if rollouts and self.samples is not None:
            save_rollouts(self.samples / f"{step_name(step.number + 1)}.jsonl", rollouts)

    def _begin(self, number: int, prompts: Sequence[Prompt]) -> Callable[[], list[Rollout]]:
        """Start drawing a step's answers; a sampler in this process draws them at once.

        Neither states of frozen layers nor a critic's values are recorded. The trainer computes them when it uses them,
        so they do not depend on where the answers were drawn.
        """
        arguments = {
            "adapter": self.learner.role.adapter,
            "seed": step_seed(self.seed, "align", number),
            "group": self.config.group,
            "weight_version": self.learner.steps,
        }
        if isinstance(self.sampler, BackgroundSampler) and self.group.size == 1:
            return self.sampler.start(prompts, **arguments)
        rollouts = drawn_by_share(
            self.group,
            f"answers of step {number + 1}",
            prompts,
            partial(self.sampler.generate, **arguments),
            answers=self.config.group,
        )
        kernels().after_sampling()
        return lambda: rollouts

    def _drawn_before(self, step: Step, prompts: Sequence[Prompt]) -> list[Rollout]:
        """The step's answers, drawn before it began; those of the first step are drawn here."""
        assert self.ahead is not None
        rollouts = self.ahead.take(step.number)
        if rollouts is None and step.resumed and self.ahead.version is not None:
            rollouts = self.group.once(f"saved answers of step {step.number + 1}", partial(self._saved, step, prompts))
        if rollouts is None:
            self.ahead.begin(step.number, self.learner.steps, self._begin(step.number, prompts))
            rollouts = self.ahead.wait()
        return rollouts

    def _saved(self, step: Step, prompts: Sequence[Prompt]) -> list[Rollout] | None:
        """Answers that an earlier process drew for this step; None without a folder for them."""
        if self.samples is None or self.ahead is None:
            return None
        ids = [p.id for p in prompts for _ in range(self.config.group)]
        path = self.samples / f"{step.name}.jsonl"
        rollouts = load_rollouts(path, ids, version=self.ahead.version)
        if rollouts is None:
            raise CheckpointError(
                f"{path} is missing or damaged, or holds other answers than those of weight version "
                f"{self.ahead.version}; they were drawn before the last update and cannot be drawn again. Delete the "
                "newest folder in checkpoints/ beside samples/, and run the same command again"
            )
        return rollouts

    def opponents(self, step: Step, prompts: Sequence[Prompt]) -> list[Rollout]:
        """The opponent's answers, as many as the policy's and with random streams of their own."""
        assert self.opponent is not None
        draw = partial(
            self.opponent.draw,
            seed=step_seed(self.seed, "opponent", step.number),
            group=self.config.group,
            weight_version=self.learner.steps,
        )
        return self._drawn(step, "opponents", prompts, draw, "-opponent", None)

    def _drawn(
        self,
        step: Step,
        phase: str,
        prompts: Sequence[Prompt],
        draw: Callable[[Sequence[Prompt]], list[Rollout]],
        suffix: str,
        states: FrozenStates | None,
    ) -> list[Rollout]:
        """Draw answers, or read those that an interrupted process had finished drawing.

        Several processes draw the same answers again, because each rank needs the states of frozen layers of its own.
        """
        group, path = self.config.group, None
        if self.samples is not None and self.group.size == 1:
            path = self.samples / f"{step.name}{suffix}.jsonl"
        if path is not None:
            if step.resumed:
                ids = [p.id for p in prompts for _ in range(group)]
                rollouts = load_rollouts(path, ids, states, version=self.learner.steps)
                if rollouts is not None:
                    return rollouts
            path.unlink(missing_ok=True)
        phase = f"{phase} of step {step.number + 1}"
        rollouts = drawn_by_share(self.group, phase, prompts, draw, answers=group)
        check_version(rollouts, self.learner.steps, phase)
        kernels().after_sampling()
        if path is not None:
            save_rollouts(path, rollouts, states)
        return rollouts

    def _value_head(self) -> ValueHead | None:
        """The critic's head if it reads the policy's own states."""
        critic = self.critic if critic_on_policy(self.config) else None
        if critic is None or critic.scalar is None:
            return None
        scalar = critic.scalar
        return lambda hidden: scalar(hidden.to(scalar.weight.dtype))

    def replace_flat_groups(
        self, step: Step, scored: Scored, score: Callable[[Sequence[Rollout]], Scored], *, attempts: int
    ) -> Scored:
        """Replace groups whose answers all score the same with groups of other prompts (DAPO's dynamic sampling).

        Args:
            step: the step.
            scored: its answers.
            score: scores new answers.
            attempts: how many times to try; groups that are still flat after the last attempt stay.
        """
        size, scored = self.config.group, replace(scored, resampled=0)
        used = {r.prompt.id for r in scored.rollouts}
        others = [p for p in self.prompts if p.id not in used]
        random.Random(f"{step.name}|{scored.rollouts[0].id}|resample").shuffle(others)
        for attempt in range(1, attempts + 1):
            scores = answer_scores(self.config, scored).view(-1, size)
            has_spread = group_has_spread(
                scores, torch.tensor([bool(r.tokens) for r in scored.rollouts]).view(-1, size)
            )
            flat = (~has_spread).nonzero().squeeze(1).tolist()[: len(others)]
            if not flat:
                break
            fresh = self.answers(step, others[: len(flat)], f"-again-{attempt}")
            others = others[len(flat) :]
            scored = scored.replace_groups(flat, score(fresh), size)
        return scored


def prompts_of_step(prompts: Sequence[Prompt], count: int, step: int, seed: int) -> list[Prompt]:
    """The step's ``count`` prompts: the next ones in an endless sequence of shuffled passes over ``prompts``."""
    chosen: list[Prompt] = []
    position = step * count
    while len(chosen) < count:
        epoch, place = divmod(position, len(prompts))
        order = list(range(len(prompts)))
        random.Random(f"{seed}|prompts|{epoch}").shuffle(order)
        part = order[place : place + count - len(chosen)]
        chosen += [prompts[i] for i in part]
        position += len(part)
    return chosen
