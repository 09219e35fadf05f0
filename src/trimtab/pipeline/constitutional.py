"""Critique and revision before SFT, and the balance of harmlessness, helpfulness and preachiness at the end."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import model_validator

from trimtab.constitution import DEFAULT, Constitution, load_constitution
from trimtab.errors import ConfigError, DataError, Interrupted, TooLongError
from trimtab.evals import Measure, declines, measure, preaches, takes_up
from trimtab.feedback import Biases, JudgeConfig, bias_lines, by_principle, judge_biases, revise
from trimtab.feedback.revision import PrincipleRounds
from trimtab.feedback.votes import first_better
from trimtab.files import write_json
from trimtab.models import Backbone, load_tensors, model_identity
from trimtab.pipeline.config import RunConfig
from trimtab.pipeline.context import LISTED, Context, Counts
from trimtab.pipeline.judge_result import ConstitutionVersion
from trimtab.pipeline.judging import EndpointJudge, LocalAsk, LocalJudge, judge_items, open_judge, plain
from trimtab.pipeline.labelling import CHUNK, sample_in_chunks
from trimtab.pipeline.learning import policy_role
from trimtab.records import (
    Comparison,
    Demonstration,
    Prompt,
    Record,
    Rollout,
    content_id,
    read_records,
    to_plain,
    write_records,
)
from trimtab.rollout import make_sampler
from trimtab.storage import Journal

TAGS = {"harmless": "harmlessness", "helpful": "helpfulness", "not-preachy": "preachiness"}
"""Tags of the constitution, and the property that their principles measure."""


class RevisionFacts(Record):
    """``revise.json``: the result of critique and revision."""

    constitution: ConstitutionVersion
    """The constitution that the model followed."""
    counts: dict[str, int]
    """Rounds by outcome; ``left_out``: prompts without a demonstration."""
    too_long: int
    """Number of conversations with no room for an answer."""
    unrendered: int
    """Number of conversations that the model's chat template refuses; early versions did not count them."""
    principles: dict[str, PrincipleRounds]
    """Rounds by the principle's id."""
    judge: Biases
    """Biases of the judge of revisions."""

    @model_validator(mode="before")
    @classmethod
    def _add_missing_fields(cls, values: Any) -> Any:
        """Fill in fields that early versions did not write; a default would not do, as defaults are never written."""
        return {"unrendered": 0, **values} if isinstance(values, dict) else values


def constitution_path(config: RunConfig) -> str | None:
    """The constitution's file for a fingerprint; for the shipped constitution, its version."""
    if config.constitution == DEFAULT:
        return f"constitution {load_constitution(DEFAULT).version}"
    return config.constitution


def read_constitution(context: Context) -> Constitution:
    """The recipe's constitution; a relative path is looked up in the current folder, then in the recipe's."""
    return load_constitution(context.data_path(context.config.constitution))


def run_revise(context: Context) -> tuple[Counts, list[str]]:
    """Have the pretrained model answer red-team prompts, criticise and revise; add helpful data to the revisions."""
    config, folder = context.config.revise, context.folder("revise")
    assert config is not None and context.config.data.redteam is not None
    constitution = read_constitution(context)
    heldout_ids = {p.id for p in context.redteam_heldout()}
    prompts = [p for p in context.load(context.config.data.redteam, Prompt).records if p.id not in heldout_ids]
    prompts = prompts[: config.prompts] if config.prompts else prompts
    if not prompts:
        raise DataError(f"{context.config.data.redteam}: no prompt left that is not in data.redteam_heldout")
    backbone = Backbone.load(context.config.model)
    identity = {
        "model": model_identity(context.config.model),
        "system": context.config.model.system,
        "sampler": config.sampler.model_dump(mode="json"),
        "seed": context.seed("revise"),
    }
    writer = LocalWriter(context, backbone)
    with (
        Journal(context.run.first.path / "replies" / "revise.jsonl") as journal,
        context.ui.bar("critique and revision") as bar,
    ):
        ask, identity["judge"] = open_judge(config.judge, journal, context.config.model)
        if isinstance(config.judge, LocalJudge) and config.judge.model is None:
            ask = LocalAsk(backbone, context.config.model.name)
        seed = context.seed("principles") + config.seed
        result = revise(
            prompts, constitution, writer, ask, config.model_copy(update={"seed": seed}),
            identity=identity, journal=journal, progress=lambda done, total: bar.update(done, total),
        )  # fmt: skip
    helpful: list[Demonstration] = []
    if context.config.data.demonstrations:
        helpful = list(context.load(context.config.data.demonstrations, Demonstration).records)
        if config.helpful is not None and result.demonstrations:
            count = min(len(helpful), round(config.helpful * len(result.demonstrations)))
            helpful = random.Random(context.seed("helpful")).sample(helpful, count)
    if not (result.demonstrations or helpful):
        raise DataError(
            f"no revision was better ({result.counts}) and there is no helpful data, so SFT has nothing to learn from; "
            "name a stronger revise.judge, or data.demonstrations"
        )
    biases = judge_biases(result.revisions)
    write_records(folder / "revisions.jsonl", result.revisions)
    write_records(folder / "demonstrations.jsonl", [*result.demonstrations, *helpful])
    facts = RevisionFacts(
        constitution=ConstitutionVersion(name=constitution.name, version=constitution.version),
        counts=result.counts,
        too_long=writer.long,
        unrendered=writer.unrendered,
        principles=by_principle(result.revisions),
        judge=biases,
    )
    write_json(folder / "revise.json", to_plain(facts))
    replaced = result.counts.get("kept", 0)
    context.ui.say(
        f"  {len(result.revisions)} revisions requested: {replaced} kept, {result.counts.get('worse', 0)} worse by the "
        f"judge, {result.counts.get('undecided', 0)} undecided; "
        f"{len(result.demonstrations)} demonstrations from {len(prompts)} prompts, "
        f"{len(helpful)} helpful ones mixed in"
    )
    for line in bias_lines(biases):
        context.ui.say(f"    judge of revisions: {line}")
    counts = {"prompts": len(prompts), "revised": len(result.demonstrations), "helpful": len(helpful)}
    outcomes = {f"outcome: {k}": n for k, n in result.counts.items()}
    left_out = {"too_long": writer.long, "unrendered": writer.unrendered}
    return counts | outcomes | left_out, ["revisions.jsonl", "demonstrations.jsonl", "revise.json"]


class LocalWriter:
    """The local model as a writer; a conversation that does not fit or render gives an empty text and is counted."""

    def __init__(self, context: Context, backbone: Backbone) -> None:
        assert context.config.revise is not None
        self.context, self.backbone, self.sampler = context, backbone, context.config.revise.sampler
        self.long = self.unrendered = 0

    def __call__(self, prompts: Sequence[Prompt], keep: Callable[[Mapping[str, str]], None]) -> None:
        """Write texts, saving after every few prompts."""
        sampler = make_sampler(self.backbone, self.sampler)
        chat = self.backbone.chat
        for start in range(0, len(prompts), CHUNK):
            if self.context.stop_requested():
                raise Interrupted("stopped during revision; all texts are stored, the same command continues")
            part, texts = prompts[start : start + CHUNK], {}
            fitting = []
            for prompt in part:
                try:
                    if len(chat.prompt(prompt.messages)) + self.sampler.max_new_tokens > chat.context:
                        raise TooLongError("no room for an answer")
                    fitting.append(prompt)
                except DataError as error:
                    texts[prompt.id] = ""
                    self._leave_out(prompt, error)
            rollouts = sampler.generate(fitting, adapter=None, seed=self.context.seed("revise"))
            keep(texts | {p.id: r.text for p, r in zip(fitting, rollouts, strict=True)})

    def _leave_out(self, prompt: Prompt, error: DataError) -> None:
        if isinstance(error, TooLongError):
            self.long += 1
            return
        self.unrendered += 1
        if self.unrendered <= LISTED:
            self.context.ui.say(f"  prompt {prompt.id} cannot be rendered and is left out: {error}")


def run_balance(context: Context) -> tuple[Counts, list[str]]:
    """Compare the first and the last model on held-out red-team prompts and on ordinary held-out prompts."""
    config, folder = context.config.balance, context.folder("balance")
    assert config is not None and context.config.evaluate is not None
    sampler = context.config.evaluate.sampler
    trunk = context.trunk()
    prompts, counts = context.fitting_redteam(trunk.chat, sampler.max_new_tokens)
    prompts = prompts[: config.prompts] if config.prompts else prompts
    names = [n for n in ("base", "policy") if (context.folder("evaluate") / f"answers-{n}.jsonl").exists()]
    benign = {n: read_records(context.folder("evaluate") / f"answers-{n}.jsonl", Rollout) for n in names}
    answers: dict[str, list[Rollout]] = {}
    base = context.trunk(pretrained=True) if context.start != "base" else trunk
    answers["base"] = sample_in_chunks(context, base, prompts, sampler, group=1, stage="balance", name="base")
    policy = policy_role(context, trunk)
    policy.load_state(load_tensors(context.folder("align") / "weights.safetensors"))
    answers["policy"] = sample_in_chunks(
        context, policy.backbone, prompts, sampler, group=1, stage="balance", name="policy", adapter=policy.adapter
    )
    measures = _by_words(answers, benign, context.seed("balance"))
    measures += _by_judge(context, config.judge, answers, benign)
    for name, rollouts in answers.items():
        write_records(folder / f"answers-{name}.jsonl", rollouts)
    write_json(folder / "balance.json", {"before": "base", "after": "policy", "measures": plain(measures)})
    for m in measures:
        before, after, change = m.before.value or 0.0, m.after.value or 0.0, m.change
        context.ui.say(
            f"  {m.name}: {before:.1%} → {after:.1%} (change {change.value or 0.0:+.1%} "
            f"[{change.low or 0.0:+.1%}, {change.high or 0.0:+.1%}]; {m.how})"
        )
    return counts | {"redteam": len(prompts), "ordinary": len(benign["policy"])}, [
        *(f"answers-{n}.jsonl" for n in answers),
        "balance.json",
    ]


def _by_words(answers: Mapping[str, list[Rollout]], benign: Mapping[str, list[Rollout]], seed: int) -> list[Measure]:
    all_answers = {n: [*answers[n], *benign[n]] for n in answers}

    def count(rollouts: Mapping[str, list[Rollout]], test: Callable[[Rollout], bool]) -> Any:
        return [[float(test(r)) for r in rollouts[n]] for n in ("base", "policy")]

    return [
        measure(
            "harmlessness", "proxy by words: red-team answers that decline",
            *count(answers, lambda r: declines(r.text)), better="up", seed=seed,
        ),
        measure(
            "helpfulness", "proxy by words: ordinary answers that do not decline and take the question up",
            *count(benign, lambda r: takes_up(r.prompt, r.completion)), better="up", seed=seed,
        ),
        measure(
            "preachiness", "proxy by words: answers with a moralising or warning phrase",
            *count(all_answers, lambda r: preaches(r.text)), better="down", seed=seed,
        ),
    ]  # fmt: skip


def _by_judge(
    context: Context,
    judge: LocalJudge | EndpointJudge,
    answers: Mapping[str, list[Rollout]],
    benign: Mapping[str, list[Rollout]],
) -> list[Measure]:
    """How often the judge prefers the last model to the first, by the principles of each property."""
    constitution, measures = read_constitution(context), []
    for tag, name in TAGS.items():
        try:
            part = constitution.model_copy(update={"principles": constitution.tagged(tag)})
        except ConfigError:
            context.ui.say(f"  the constitution has no principle tagged {tag!r}: {name} is measured by words only")
            continue
        compared = {"harmless": answers, "helpful": benign}.get(tag) or {n: [*answers[n], *benign[n]] for n in answers}
        context.ui.say(f"  {name}, by a judge with the principles tagged {tag!r}")
        items, ties = [], []
        for before, after in zip(compared["base"], compared["policy"], strict=True):
            if before.text == after.text:
                ties.append(0.5)
                continue
            item = Comparison.of(before.prompt, [after.completion, before.completion])
            items.append(item.model_copy(update={"id": content_id("balance", item.id)}))
        judged = judge_items(
            items, part, {"judge": judge}, JudgeConfig(seed=context.seed("balance")), context.folder("balance") / tag,
            default=context.config.model, ui=context.ui, seed=context.seed("balance"),
        )  # fmt: skip
        p = [first_better(j) for j in judged["judge"].judgements]
        answered = [x for x in p if x is not None]
        wins = [0.5 if x == 0.5 else float(x > 0.5) for x in answered] + ties
        kind = {"harmless": "red-team", "helpful": "ordinary"}.get(tag, "all")
        missing = f", {len(p) - len(answered)} without an answer" if len(answered) < len(p) else ""
        how = f"proxy by judge: {kind} prompts on which it prefers this model's answer by {tag} principles{missing}"
        if wins:
            seed = context.seed("balance")
            # The judge measures the opposite of preachiness, so that higher is better for every measure by the judge.
            label = "not preachy" if name == "preachiness" else name
            measures.append(measure(label, how, [1 - w for w in wins], wins, better="up", seed=seed))
    return measures
