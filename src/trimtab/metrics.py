"""Every number that trimtab logs or shows: meaning, unit, good range, and what to do outside it.

One table for the documentation, the live line of a run, the charts of the report and a test that trains
tiny models and fails when a logged key has no entry. Ranges are rules of thumb for language models, not limits.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """What one number means."""

    title: str
    """Its name on a page."""
    meaning: str
    """One or two sentences."""
    unit: str
    """Unit of the value; ``share`` is between 0 and 1 and written in percent."""
    good: str
    """The range to expect."""
    act: str
    """What to do when it is outside that range."""
    where: str = ""
    """Where it occurs: stages or methods; empty: everywhere in its group."""
    live: str = ""
    """Format on the live line of a run; empty: not shown there."""


TRAINING: Mapping[str, Metric] = {
    # Every stage that trains
    "step": Metric(
        title="Step",
        meaning="Number of the step, from 1: an optimiser step, or a rollout batch with online methods.",
        unit="steps",
        good="rises by 1",
        act="A missing number means that two processes wrote to one folder; run `trimtab doctor` and report it.",
    ),
    "time": Metric(
        title="Time",
        meaning="When the line was written.",
        unit="seconds since 1970, UTC",
        good="rises",
        act="Nothing.",
    ),
    "loss": Metric(
        title="Loss",
        meaning="The stage's objective: negative log-likelihood per response token (SFT), Bradley–Terry loss per "
        "ranking (reward model), or the method's own loss (offline alignment).",
        unit="nats",
        good="falls; for SFT a smooth fall that flattens, for pairwise losses below log 2 = 0.693",
        act="If it rises or oscillates, halve the learning rate. If it stays flat, check that rows are not all refused "
        "or identical, then double the rate.",
        where="sft, reward, offline methods",
        live="loss {:.3f}",
    ),
    "grad_norm": Metric(
        title="Gradient norm",
        meaning="Norm of the gradient before clipping to `max_grad_norm`.",
        unit="1",
        good="steady; below a few times its first values",
        act="If it jumps, lower the learning rate or raise `warmup`. If it is always above `max_grad_norm`, every step "
        "is clipped: lower the rate rather than the norm.",
        where="sft, reward, offline methods",
    ),
    "lr": Metric(
        title="Learning rate",
        meaning="The rate of the step's last update, after warm-up and schedule.",
        unit="1",
        good="as in `trimtab plan`",
        act="Change `lr`, `warmup` or `schedule` of the stage's optimiser.",
    ),
    "tokens": Metric(
        title="Response tokens",
        meaning="Tokens of the step that the loss counts.",
        unit="tokens",
        good="steady",
        act="If small, conversations are short or mostly prompt: raise `batch`.",
        where="sft",
    ),
    # Pairs
    "accuracy": Metric(
        title="Accuracy",
        meaning="Share of the step's pairs that are ranked as labelled; 50 % is guessing. With offline methods the "
        "ranking is by log(π/ref), or by the method's own score.",
        unit="share",
        good="60 % to 80 % on training pairs; compare with the agreement of annotators",
        act="Near 50 %: more or more consistent preferences. Near 100 %: it memorises; fewer epochs, and trust the "
        "held-out accuracy only.",
        where="reward, offline methods, online_dpo",
        live="accuracy {:.0%}",
    ),
    "pairs": Metric(
        title="Pairs",
        meaning="Pairs of a better and a worse answer in the step.",
        unit="pairs",
        good="`batch` or more",
        act="If 0, all rankings are tied.",
        where="reward",
    ),
    "gap": Metric(
        title="Margin",
        meaning="Mean of log(π/ref) of the better answer minus that of the worse one; for `simpo` and `orpo` the "
        "difference of log-probabilities per token.",
        unit="nats",
        good="rises from 0",
        act="If it grows past tens of nats, the policy is far from its reference: raise `beta` (`tau` for IPO) or stop "
        "earlier.",
        where="pairwise offline methods, online_dpo",
    ),
    "chosen": Metric(
        title="log(π/ref) of better answers",
        meaning="Mean log-ratio of policy to reference of the better answers, summed over tokens; without a reference "
        "the log-probability. With KTO, of liked answers, weighted by their share of the step.",
        unit="nats",
        good="around 0 or rising",
        act="If it falls together with `rejected`, probability moves to answers nobody judged: lower the learning "
        "rate, raise `beta`, or use a method with a likelihood term (`orpo`, `cpo`).",
        where="offline methods",
    ),
    "rejected": Metric(
        title="log(π/ref) of worse answers",
        meaning="The same for the worse answers, with KTO for disliked ones.",
        unit="nats",
        good="falls, more than `chosen`",
        act="As for `chosen`.",
        where="offline methods",
    ),
    "reference_point": Metric(
        title="KTO's reference point",
        meaning="z, the estimate of KL(π‖ref) from mismatched answers that KTO compares each log-ratio with.",
        unit="nats",
        good="0 to a few nats",
        act="If it grows past tens of nats, lower the learning rate or raise `beta`.",
        where="kto",
    ),
    # Online alignment: the rollout batch
    "reward": Metric(
        title="Proxy reward",
        meaning="Weighted sum of all rewards, mean over the step's answers, before clipping and penalties. Training "
        "maximises it, so it is not evidence of quality.",
        unit="reward",
        good="rises, then flattens",
        act="If flat, check `flat_groups` and the learning rate. If it rises while `gold` or readers do not follow, "
        "the reward is being exploited: raise `align.kl.coefficient`.",
        where="online methods",
        live="reward {:+.2f}",
    ),
    "reward_std": Metric(
        title="Spread of the reward",
        meaning="Standard deviation of the reward over the step's answers.",
        unit="reward",
        good="clearly above 0",
        act="Near 0 there is nothing to compare: raise `sampler.temperature`, or use a reward that distinguishes "
        "answers.",
        where="online methods",
    ),
    "reward/NAME": Metric(
        title="Reward component",
        meaning="Mean of one named reward, normalised, before its weight.",
        unit="reward",
        good="all components rise, or stay",
        act="If one rises while another falls, adjust the weights in `rewards`.",
        where="online methods",
    ),
    "gold": Metric(
        title="Gold reward",
        meaning="Mean score of the simulated utility that training never sees.",
        unit="utility",
        good="rises with the proxy",
        act="If it falls while the proxy rises, stop earlier or raise `align.kl.coefficient`.",
        where="online methods with `gold`",
        live="gold (simulated) {:+.2f}",
    ),
    "score_clipped": Metric(
        title="Clipped scores",
        meaning="Share of answers whose score was limited by `align.score_clip`.",
        unit="share",
        good="below 5 %",
        act="Above that, normalise the reward (`mean`, `std`) or raise `align.score_clip`.",
        where="policy gradients",
    ),
    "flat_groups": Metric(
        title="Flat groups",
        meaning="Share of prompts whose answers all earned the same; they teach group methods nothing.",
        unit="share",
        good="below 50 %",
        act="Prompts are too easy or too hard, or the reward is too coarse: raise `align.group` or the temperature, "
        "change the prompts, or use `dapo` with `resample`.",
        where="online methods with `group` above 1",
    ),
    "resampled": Metric(
        title="Resampled groups",
        meaning="Flat groups that were replaced by other prompts' groups in this step.",
        unit="groups",
        good="a small part of `prompts`",
        act="If nearly all are replaced, sampling costs several times as much: see `flat_groups`.",
        where="dapo",
    ),
    "kl": Metric(
        title="KL per answer",
        meaning="Estimate (k1) of KL(π_old‖reference), summed over an answer's tokens, mean over answers: the distance "
        "from the policy before alignment.",
        unit="nats",
        good="0 to a few nats for short answers; slightly below 0 is noise",
        act="If it grows without bound, raise `align.kl.coefficient` or set `align.kl.target`. If it stays at 0, "
        "nothing is learned: check the learning rate.",
        where="online methods",
        live="KL {:.1f} nats",
    ),
    "k3_clamped": Metric(
        title="Clamped k3",
        meaning="Share of tokens whose k3 was limited to 10 nats, so that the KL penalty has no gradient there.",
        unit="share",
        good="0 %",
        act="Above 0, use `align.kl.estimator: sequence`, or raise `align.kl.coefficient`.",
        where="policy gradients with `kl.estimator: k3`",
    ),
    "empty": Metric(
        title="Empty answers",
        meaning="Answers without a token. They are not scored, and left out of the update and of their group's mean.",
        unit="answers",
        good="0",
        act="Check the sampler: it may strip the token that ends a turn.",
        where="online methods",
    ),
    "beta": Metric(
        title="KL coefficient",
        meaning="β of this step: fixed, or adapted to `align.kl.target`.",
        unit="reward per nat; standard deviations per nat where advantages are divided by one",
        good="settles within a few steps of `align.kl.horizon`",
        act="If it runs to 0 or grows without bound, the target does not fit the learning rate.",
        where="online methods",
    ),
    "length": Metric(
        title="Answer length",
        meaning="Mean tokens per answer. Reward that comes from length alone shows here.",
        unit="tokens",
        good="stays near the first step's",
        act="If it grows with the reward, the reward prefers length: add a reward for brevity, or retrain the reward "
        "model on pairs of like length. If it reaches `max_new_tokens`, see `ended`.",
        where="online methods",
        live="{:.0f} tokens",
    ),
    "ended": Metric(
        title="Ended answers",
        meaning="Share of answers that end their turn instead of being cut at `max_new_tokens`.",
        unit="share",
        good="above 90 %, and not falling",
        act="If it falls, set or raise the `align.missing_eos` penalty, lower the learning rate, or raise "
        "`max_new_tokens`.",
        where="online methods",
    ),
    "distinct": Metric(
        title="Different answers",
        meaning="Different texts as a share of the step's answers.",
        unit="share",
        good="near 100 % for open questions",
        act="If it falls, the policy collapses to one answer: raise the temperature, `entropy_bonus` or the KL "
        "penalty.",
        where="online methods",
    ),
    # Online alignment: the update
    "policy_loss": Metric(
        title="Policy loss",
        meaning="The policy's loss: the clipped surrogate with KL and entropy terms, online DPO's loss, or the "
        "likelihood of the best answers; mean over the step's updates.",
        unit="1",
        good="near 0 for policy gradients; only its gradient matters",
        act="Do not tune on it; look at `reward`, `kl` and `clip_fraction`.",
        where="online methods",
    ),
    "policy_grad_norm": Metric(
        title="Policy gradient norm",
        meaning="Norm of the policy's gradient before clipping to `max_grad_norm`.",
        unit="1",
        good="steady",
        act="If it jumps, lower `align.policy.lr`; if it is 0, no answer had an advantage: see `flat_groups`.",
        where="online methods",
    ),
    "entropy": Metric(
        title="Entropy",
        meaning="Entropy of the policy's next-token distribution, mean over response tokens. A fall towards 0 means "
        "that answers become identical.",
        unit="nats per token",
        good="falls slowly, stays above a tenth of its first value",
        act="If it collapses, raise `entropy_bonus` or the KL penalty, or lower the learning rate. If it rises, the "
        "policy is losing its language: lower the learning rate.",
        where="online methods",
    ),
    "approx_kl": Metric(
        title="KL of the update",
        meaning="Estimate (k3) of KL(π_old‖π) per token, measured before each update: how far the step has moved from "
        "the policy that sampled its answers.",
        unit="nats per token",
        good="below 0.05; exactly 0 with one update per step, up to rounding",
        act="If larger, lower the learning rate or `epochs`, or set `align.kl.stop`.",
        where="online methods",
    ),
    "mismatch": Metric(
        title="Sampler mismatch",
        meaning="Mean |log π_trainer − log π_sampler| per token before the first update.",
        unit="nats per token",
        good="below 0.001 with the local sampler, below 0.05 with vLLM or lower precision",
        act="If larger, sampler and trainer disagree about the model: check precision, temperature and chat template; "
        "with an external sampler set `importance_cap`.",
        where="online methods",
    ),
    "clip_fraction": Metric(
        title="Clip fraction",
        meaning="Share of tokens whose probability ratio was clipped.",
        unit="share",
        good="0 to 20 %",
        act="If larger, updates are too big: lower the learning rate or `epochs`. If always 0 with several epochs, the "
        "rate may be too low.",
        where="policy gradients",
    ),
    "updates": Metric(
        title="Updates",
        meaning="Optimiser steps taken in this step.",
        unit="updates",
        good="`epochs` × `minibatches`",
        act="Fewer: `align.kl.stop` ended the step, or no group had different scores.",
        where="online methods",
    ),
    "kl_stopped": Metric(
        title="Stopped by KL",
        meaning="1 if `align.kl.stop` ended this step's updates early, otherwise 0.",
        unit="0 or 1",
        good="0 in most steps",
        act="If it is 1 in most steps, lower the learning rate; the limit should be an exception.",
        where="online methods with `kl.stop`",
    ),
    "ptx_nll": Metric(
        title="Imitation loss",
        meaning="Negative log-likelihood per token of the conversations that PPO-ptx imitates.",
        unit="nats per token",
        good="stays near its first value",
        act="If it rises, raise `ptx.coefficient` or lower the learning rate.",
        where="policy gradients with `ptx`",
    ),
    # The critic
    "value": Metric(
        title="Value",
        meaning="The critic's mean prediction of the return, before the update.",
        unit="reward",
        good="follows `reward`",
        act="If it drifts away, see `explained_variance`.",
        where="ppo",
    ),
    "value_loss": Metric(
        title="Value loss",
        meaning="Squared error of the critic on its returns, halved and clipped as in PPO.",
        unit="reward²",
        good="falls, below half the variance of the returns",
        act="If it rises or explodes, lower `align.critic.lr`; large rewards need normalisation.",
        where="ppo",
    ),
    "value_grad_norm": Metric(
        title="Critic gradient norm",
        meaning="Norm of the critic's gradient before clipping to `max_grad_norm`.",
        unit="1",
        good="steady",
        act="If it jumps, lower `align.critic.lr`.",
        where="ppo with a critic of its own",
    ),
    "explained_variance": Metric(
        title="Explained variance",
        meaning="1 − Var(returns − values) / Var(returns): how much of the returns the critic predicts. 1 is all, 0 is "
        "no better than a constant, below 0 worse than a constant.",
        unit="1",
        good="rises from 0 within the first steps; 0.3 to 0.9 later",
        act="If it stays near 0 or below, the advantages are mostly noise: raise `align.critic.lr`, start the critic "
        "from the reward model (`critic_init: reward_model`), or use a method without a critic (`rloo`).",
        where="ppo",
    ),
    # Time
    "seconds/PHASE": Metric(
        title="Seconds of a phase",
        meaning="Wall time of one phase of the step: `sample`, `score`, `resample`, `infer` (reference, critic, "
        "advantages), `update`.",
        unit="seconds",
        good="`sample` and `update` dominate",
        act="If `sample` dominates, raise `sampler.slots`; if `score` does, the reward function is slow; if `update` "
        "does, fewer `epochs` or a shared critic.",
        where="online methods",
    ),
}
"""Keys of ``metrics.jsonl`` and of TensorBoard. ``NAME`` and ``PHASE`` stand for any name."""

EVALUATION: Mapping[str, Metric] = {
    "win_rate": Metric(
        title="Win rate",
        meaning="Share of held-out prompts on which one model's answer is preferred over another's by the named judge; "
        "a tie counts half. With a 95 % Wilson interval.",
        unit="share",
        good="an interval above 50 %, by a judge that training did not maximise",
        act="If the interval includes 50 %, there is no verdict: more prompts. If only the proxy wins, do not believe "
        "it.",
    ),
    "kl": Metric(
        title="KL per answer",
        meaning="KL(last model‖model before alignment) per answer on held-out prompts, in nats, with a 95 % interval.",
        unit="nats",
        good="0 to a few nats for short answers",
        act="As for `kl` in training.",
    ),
    "likelihood": Metric(
        title="Log-probability under the pretrained model",
        meaning="Mean log-probability per token of a model's answers under the pretrained model.",
        unit="nats per token",
        good="at most 1 nat below the pretrained model's own answers",
        act="The model left the pretrained model's language; lower the learning rate or raise the KL penalty.",
    ),
    "sensible": Metric(
        title="Sensible answers",
        meaning="Answers that a blind reader called true to the prompt and sensible, of those marked.",
        unit="answers",
        good="not fewer than the model before",
        act="Read the others; if alignment lost them, prefer the earlier model.",
    ),
}
"""Numbers of the evaluation on the report's first screens."""

REWARD_MODEL: Mapping[str, Metric] = {
    "accuracy": Metric(
        title="Reward model",
        meaning="Share of held-out pairs that the reward model ranks as labelled.",
        unit="share",
        good="above the longest answer's, at most the annotators' ceiling",
        act="If it does not beat the longest answer, collect more preferences or more agreement.",
    ),
    "longest": Metric(
        title="Longest answer",
        meaning="Accuracy of calling the longer answer better.",
        unit="share",
        good="40 % to 60 %",
        act="Far from 50 %: the labels follow length; check the guideline, and pair answers of like length.",
    ),
    "gain": Metric(
        title="Gain over the longest answer",
        meaning="Difference of the two accuracies, with a 95 % interval.",
        unit="share",
        good="an interval above 0",
        act="If it includes 0, the reward model may have learned length only.",
    ),
    "ece": Metric(
        title="Expected calibration error",
        meaning="Mean distance between the reward model's confidence and its accuracy, over bins.",
        unit="share",
        good="below 10 %",
        act="If larger, confidence means little: fewer epochs, or soft labels.",
    ),
    "log_loss": Metric(
        title="Log loss",
        meaning="Mean negative log-probability of the labels of held-out pairs.",
        unit="nats",
        good="below log 2 = 0.693",
        act="Above it, the model is worse than guessing with its confidence: fewer epochs, lower learning rate.",
    ),
    "ceiling": Metric(
        title="One annotator against the others",
        meaning="How often one annotator agrees with the net vote of the others: the highest accuracy on single "
        "judgements that means anything.",
        unit="share",
        good="above 70 %",
        act="See the agreement statistics.",
    ),
}
"""Numbers of the reward model's evaluation on held-out preferences."""

PROBES: Mapping[str, Metric] = {
    "distinct_answers": Metric(
        title="different answers, share of all",
        meaning="Different texts as a share of all answers, ignoring case and white space.",
        unit="share",
        good="above 90 %",
        act="Below: the policy collapsed; raise temperature or KL penalty.",
    ),
    "distinct_1": Metric(
        title="distinct-1: different words, share of all words",
        meaning="Different words over all words of all answers (Li et al. 2016). It falls as texts grow; compare equal "
        "numbers.",
        unit="share",
        good="near the model before",
        act="A clear fall is loss of variety; read examples.",
    ),
    "distinct_2": Metric(
        title="distinct-2: different word pairs, share of all pairs",
        meaning="The same for pairs of neighbouring words.",
        unit="share",
        good="near the model before",
        act="As for distinct-1.",
    ),
    "repetition": Metric(
        title="repeated 4-grams within an answer, share",
        meaning="Share of an answer's runs of four words that occurred before in it.",
        unit="share",
        good="below 5 %, at most 5 points above the model before",
        act="Answers go round in circles: lower the learning rate, fewer steps.",
    ),
    "words": Metric(
        title="words per answer",
        meaning="Mean words per answer.",
        unit="words",
        good="at most one and a half times the model before",
        act="The reward prefers length; see `length`.",
    ),
    "tokens": Metric(
        title="tokens per answer",
        meaning="Mean tokens per answer.",
        unit="tokens",
        good="as `words`",
        act="As for words.",
    ),
    "ended_rate": Metric(
        title="ended by itself, share of answers",
        meaning="Share of answers that end their turn instead of being cut.",
        unit="share",
        good="at most 10 points below the model before",
        act="See `ended`.",
    ),
    "flattery": Metric(
        title="flatters the reader, share of answers",
        meaning="Share of answers with a phrase of our list of flattery.",
        unit="share",
        good="at most 20 points above the model before",
        act="The reward pays for flattery; read examples, change the labels.",
    ),
    "boilerplate": Metric(
        title="stock phrases, share of answers",
        meaning="Share of answers with a phrase of our list of stock phrases.",
        unit="share",
        good="at most 20 points above the model before",
        act="As for flattery.",
    ),
    "copied": Metric(
        title="copies the prompt, share of answers",
        meaning="Share of answers that reproduce the prompt or one of its sentences.",
        unit="share",
        good="at most 10 points above the pretrained model",
        act="Add a reward against copies, or demonstrations without them.",
    ),
    "exclamations": Metric(
        title="exclamation marks per 100 words",
        meaning="Exclamation marks per 100 words over all answers.",
        unit="per 100 words",
        good="near the model before",
        act="A jump is a habit that the reward pays for.",
    ),
}
"""Text probes of a model's answers, in the order of the report."""

CAPABILITY: Mapping[str, Metric] = {
    "right": Metric(
        title="right answers",
        meaning="Share of everyday questions whose right answer is likelier than a wrong one.",
        unit="share",
        good="at most 5 points lost",
        act="Lower the learning rate, fewer epochs, or mix in general demonstrations.",
    ),
    "margins": Metric(
        title="log-odds of right answers",
        meaning="Mean of log p(right) − log p(wrong).",
        unit="nats",
        good="at most 15 % lost",
        act="As for right answers.",
    ),
    "answers": Metric(
        title="answers on topic and complete",
        meaning="Share of open questions whose greedy answer has a keyword and a whole sentence, without repeating "
        "itself.",
        unit="share",
        good="at most 15 points lost",
        act="As for right answers; read the answers in `capability.json`.",
    ),
    "texts": Metric(
        title="perplexity of neutral text",
        meaning="exp of the mean negative log-probability per token of plain prose.",
        unit="perplexity",
        good="at most 25 % more",
        act="As for right answers.",
    ),
    "demonstrations": Metric(
        title="perplexity of held-out demonstrations",
        meaning="The same for the assistant's tokens of demonstrations that SFT did not train on.",
        unit="perplexity",
        good="falls with SFT; at most 50 % more after alignment",
        act="Use PPO-ptx (`align.ptx`), or raise the KL penalty.",
    ),
}
"""Measures of the capability check before and after training."""

AGREEMENT: Mapping[str, Metric] = {
    "raw_agreement": Metric(
        title="Raw agreement of two annotators",
        meaning="How often two annotators say the same about a pair of answers; a tie is an answer of its own.",
        unit="share",
        good="above 65 % for preferences",
        act="Improve the guideline and its examples before collecting more; look at *Disagreements*.",
    ),
    "leave_one_out": Metric(
        title="One annotator against the others",
        meaning="How often an annotator who chose a winner chose that of the others' net vote; ½ where these are even.",
        unit="share",
        good="above 70 %; the ceiling of a reward model's accuracy on single judgements",
        act="As for raw agreement; more people for each item raise the quality of the aggregate, not this number.",
    ),
    "krippendorff_alpha": Metric(
        title="Krippendorff's α",
        meaning="Agreement corrected for chance, for any number of annotators: 1 perfect, 0 chance, below 0 systematic "
        "disagreement.",
        unit="1",
        good="above 0.4 for preferences; 0.67 and more is called reliable for facts",
        act="Below 0.2 the labels are close to chance: change the task.",
    ),
    "cohen_kappa": Metric(
        title="Cohen's κ",
        meaning="The same for exactly two annotators.",
        unit="1",
        good="as α",
        act="As for α.",
    ),
    "fleiss_kappa": Metric(
        title="Fleiss' κ",
        meaning="The same for items with equal numbers of annotators.",
        unit="1",
        good="as α",
        act="As for α.",
    ),
    "gwet_ac1": Metric(
        title="Gwet's AC1",
        meaning="Agreement corrected for chance that stays meaningful where nearly all say the same.",
        unit="1",
        good="as α, or above it",
        act="If it is high while α is low, one answer is nearly always chosen; look at raw agreement.",
    ),
    "first_shown_wins": Metric(
        title="The answer shown first wins",
        meaning="Of pairs with a winner, how often the answer shown first won.",
        unit="share",
        good="an interval that includes 50 %",
        act="Annotators do not read to the end: shorter answers, attention items.",
    ),
    "longest_wins": Metric(
        title="The longest answer wins",
        meaning="Of pairs with a winner, how often the longer answer won.",
        unit="share",
        good="near 50 %, unless longer is better in this task",
        act="Say in the guideline what length is worth; pair answers of like length.",
    ),
    "three_cycles": Metric(
        title="Cycles among three answers (expected by chance: ¼)",
        meaning="Of triples of answers with a net winner in each pair, how many form a cycle.",
        unit="share",
        good="well below 25 %",
        act="Near 25 % the preferences are not consistent: a clearer criterion.",
    ),
}
"""Agreement of annotators and two common biases; names as in ``agreement.json``."""

JUDGES: Mapping[str, Metric] = {
    "position_bias": Metric(
        title="Position bias",
        meaning="How often the judge prefers the answer shown first, over both orders.",
        unit="share",
        good="near 50 %",
        act="Verdicts are averaged over both orders; far from 50 % most become ties. Use a stronger judge.",
    ),
    "flip_rate": Metric(
        title="Contradictions when the order is swapped",
        meaning="Share of pairs for which the two orders name different winners.",
        unit="share",
        good="below 20 %",
        act="Use a stronger judge, or simpler principles.",
    ),
    "longer_wins": Metric(
        title="The longer answer wins",
        meaning="Of the judge's pairs with a winner and different lengths, how often the longer answer won.",
        unit="share",
        good="near that of people on the same pairs",
        act="Ask for a principle on length, or pair answers of like length.",
    ),
}
"""Biases of an AI judge; names as in ``judge.json``."""

BALANCE: Mapping[str, Metric] = {
    "harmlessness": Metric(
        title="Harmlessness",
        meaning="Red-team answers that decline, by phrases; or red-team prompts on which the judge prefers the model "
        "by harmless principles. A proxy.",
        unit="share",
        good="rises",
        act="Read the answers; a refusal for the wrong reason counts too.",
    ),
    "helpfulness": Metric(
        title="Helpfulness",
        meaning="Ordinary answers that do not decline and take up the question; or the judge's preference by helpful "
        "principles. A proxy.",
        unit="share",
        good="does not fall",
        act="If it falls, mix in helpful demonstrations and prompts.",
    ),
    "preachiness": Metric(
        title="Preachiness",
        meaning="Answers with a moralising or warning phrase.",
        unit="share",
        good="does not rise",
        act="Raise the weight of principles against preaching.",
    ),
    "not preachy": Metric(
        title="Not preachy",
        meaning="Prompts on which the judge prefers the model by not-preachy principles. A proxy.",
        unit="share",
        good="does not fall",
        act="As for preachiness.",
    ),
}
"""Properties before and after Constitutional AI."""

ANNOTATION: Mapping[str, Metric] = {
    "progress": Metric(
        title="Judged of needed",
        meaning="Judgements given, of those that all items need.",
        unit="judgements",
        good="rises",
        act="Invite more annotators, or lower the overlap.",
    ),
    "days_left": Metric(
        title="Days left",
        meaning="Remaining judgements at the pace of the last seven days.",
        unit="days",
        good="within your plan",
        act="As for progress.",
    ),
    "seconds": Metric(
        title="Seconds per item",
        meaning="Median time from showing an item to its judgement.",
        unit="seconds",
        good="long enough to read the answers",
        act="See `fast`.",
    ),
    "fast": Metric(
        title="Fast judgements",
        meaning="Share of an annotator's judgements below the project's limit (`fast_seconds`).",
        unit="share",
        good="below 10 %",
        act="Look at this annotator's check items and agreement; talk, pause, or leave the labels out.",
    ),
    "checks": Metric(
        title="Check items right",
        meaning="Share of gold and attention items that an annotator answered as expected.",
        unit="share",
        good="above 80 %",
        act="If one annotator is below, train or pause; if all are, the check item is wrong.",
    ),
    "agreement": Metric(
        title="Agreement with the others",
        meaning="Share of an annotator's winners that are the others' net winner too (½ where these are even).",
        unit="share",
        good="within 10 points of the others",
        act="As for checks.",
    ),
}
"""Numbers of the annotation app's dashboard. Agreement and biases are as in :data:`AGREEMENT`."""

GROUPS: Mapping[str, tuple[str, Mapping[str, Metric]]] = {
    "Training": ("Keys of `stages/*/metrics.jsonl` and of TensorBoard.", TRAINING),
    "Evaluation": ("The report's headline and tiles, and `evaluation.json`.", EVALUATION),
    "Reward model": ("The report's section *Reward model*, and `reward.json`.", REWARD_MODEL),
    "Text probes": ("The report's section *What changed in the text*. None of these is a verdict.", PROBES),
    "Capability": ("The report's section *What alignment cost*, and `capability.json`.", CAPABILITY),
    "Agreement": ("The report, `trimtab agreement`, the dashboard, and `agreement.json`.", AGREEMENT),
    "AI judges": ("`trimtab judge`, `trimtab route`, and `judge.json`.", JUDGES),
    "Balance": ("Constitutional runs, and `balance.json`.", BALANCE),
    "Annotation": ("The annotation app's dashboard.", ANNOTATION),
}
"""All tables by title, each with where its numbers appear."""


def training_metric(key: str) -> Metric | None:
    """The entry of a key of ``metrics.jsonl``; None if it has none.

    >>> training_metric("reward/short").title, training_metric("seconds/update").unit
    ('Reward component', 'seconds')
    """
    for prefix, general in (("reward/", "reward/NAME"), ("seconds/", "seconds/PHASE")):
        if key.startswith(prefix):
            return TRAINING[general]
    return TRAINING.get(key)


def live_line(metrics: Mapping[str, float]) -> str:
    """The numbers shown beside the progress bar, in the order of :data:`TRAINING`.

    >>> live_line({"loss": 0.5, "accuracy": 0.75, "lr": 1e-4})
    'loss 0.500 · accuracy 75%'
    """
    return " · ".join(m.live.format(metrics[key]) for key, m in TRAINING.items() if m.live and key in metrics)
