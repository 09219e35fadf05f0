"""Numbers that training logs: keys of ``metrics.jsonl`` and of TensorBoard."""

from collections.abc import Mapping

from trimtab.metrics.entry import Metric

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
        meaning="Tokens of the step that count in the loss.",
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
        act="Near 50 %, collect more preferences or more consistent ones. Near 100 %, the model memorises: train for "
        "fewer epochs, and trust only the held-out accuracy.",
        where="reward, offline methods, online_dpo, xpo",
        live="accuracy {:.0%}",
    ),
    "step_accuracy": Metric(
        title="Accuracy of steps",
        meaning="Share of the judged steps for which the model's P(right) is on the label's side of one half.",
        unit="share",
        good="above the share of right steps, which is the accuracy of calling every step right",
        act="At that share the model has learned nothing: add solutions, or raise the learning rate. What counts is "
        "the held-out F1 of the first wrong step.",
        where="process",
        live="steps right {:.0%}",
    ),
    "judged_steps": Metric(
        title="Judged steps",
        meaning="Solution steps with a known label in this optimiser step. Steps after the first wrong one have no "
        "label.",
        unit="steps",
        good="`batch` or more",
        act="If low, most solutions go wrong at once: add better ones.",
        where="process",
    ),
    "pairs": Metric(
        title="Pairs",
        meaning="Pairs of a better and a worse answer in the step.",
        unit="pairs",
        good="`batch` or more",
        act="If 0, all rankings are tied.",
        where="reward",
    ),
    "length_correlation": Metric(
        title="Correlation of reward and length",
        meaning="With `reward.length`: correlation of the reward with the tokens of an answer, among the step's "
        "answers to one prompt, before the step.",
        unit="−1 to 1",
        good="falls to about 0",
        act="If it stays high, raise `length.correlation`, or train longer.",
        where="reward",
    ),
    "length_head_correlation": Metric(
        title="Correlation of the length head and length",
        meaning="With `reward.length`: the same correlation for the second head, which absorbs the length signal and "
        "is not part of the reward.",
        unit="−1 to 1",
        good="rises to near 1",
        act="If it stays low, the head has not learned to follow length: train longer.",
        where="reward",
    ),
    "win": Metric(
        title="P(win)",
        meaning="Mean probability that an answer of the policy beats its opponent's: for `nash_md` an answer of the "
        "mixture of policy and reference, for `xpo` one of the reference.",
        unit="share",
        good="½ at the start, then above it; for `nash_md` with a small `mixture` it stays near ½",
        act="If it falls, lower the learning rate. Near 1, there is nothing more to learn from the opponent: raise β, "
        "or move the reference (`reference_update`).",
        where="nash_md, xpo",
    ),
    "exploration": Metric(
        title="log π of the reference's answers",
        meaning="Mean log-probability, under the policy, of the answers that the reference drew; XPO lowers it by α.",
        unit="nats",
        good="falls slowly",
        act="If it falls much faster than `gap` rises, the policy moves away from good answers too: lower `alpha`.",
        where="xpo",
    ),
    "gap": Metric(
        title="Margin",
        meaning="Mean of log(π/ref) of the better answer minus that of the worse one; for `simpo` and `orpo`, the "
        "difference of log-probabilities per token; for `xpo`, the policy's answer minus the reference's.",
        unit="nats",
        good="rises from 0",
        act="If it grows past tens of nats, the policy is far from its reference: raise `beta` (`tau` for IPO) or stop "
        "earlier.",
        where="pairwise offline methods, online_dpo, xpo",
    ),
    "chosen": Metric(
        title="log(π/ref) of better answers",
        meaning="Mean log-ratio of policy to reference of the better answers, summed over tokens; without a "
        "reference, their log-probability. With KTO, the mean over liked answers, weighted by their share of the "
        "step.",
        unit="nats",
        good="around 0 or rising",
        act="If it falls together with `rejected`, probability moves to unjudged answers: lower the learning "
        "rate, raise `beta`, or use a method with a likelihood term (`orpo`, `cpo`).",
        where="offline methods",
    ),
    "rejected": Metric(
        title="log(π/ref) of worse answers",
        meaning="The same for the worse answers; with KTO, for disliked answers.",
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
    "reward_std_prompt": Metric(
        title="Spread of the reward within a prompt",
        meaning="Square root of the mean variance of the reward among the answers to one prompt. Methods that compare "
        "these answers learn from this spread.",
        unit="reward",
        good="a large part of `reward_std`",
        act="If it is small compared with `reward_std`, the reward distinguishes prompts and not answers; even if it "
        "is accurate, the policy learns slowly from it. Collect preferences between answers of this policy.",
        where="online methods with several answers to a prompt",
    ),
    "reward/NAME": Metric(
        title="Reward component",
        meaning="Mean of one named reward, normalised, before its weight.",
        unit="reward",
        good="all components rise, or stay",
        act="If one rises while another falls, adjust the weights in `rewards`.",
        where="online methods",
    ),
    "reward/heldout": Metric(
        title="Held-out reward",
        meaning="Mean normalised score of a reward model that the policy is not trained on: with `reward.split`, one "
        "that learned from the other half of the preferences.",
        unit="standard deviations of the training answers' scores",
        good="rises with `reward`",
        act="If it falls while `reward` rises, the proxy's errors are being exploited: end earlier with "
        "`align.select: heldout`. It does not show the errors that both reward models share.",
        where="online methods with `reward.split`",
        live="held out {:+.2f}",
    ),
    "reward/spread": Metric(
        title="Disagreement of reward models",
        meaning="Standard deviation of the normalised scores of all reward models, the held-out one included, mean "
        "over answers.",
        unit="standard deviations of the training answers' scores",
        good="near its first values",
        act="If it grows, answers are unlike those that the models learned from: label some, or set "
        "`reward.ensemble.score` to `worst` or `penalised`.",
        where="online methods with `reward.split` or `reward.ensemble`",
    ),
    "probe/NAME": Metric(
        title="Text probe",
        meaning="Mean of one sign of reward hacking in the step's answers: a share of answers, lines or 4-grams.",
        unit="share",
        good="near its value in the first steps",
        act="An alarm says when it has risen and what to do; read the answers with `trimtab watch`.",
        where="online methods, unless `alarms` is `null`",
    ),
    "alarms": Metric(
        title="Alarms",
        meaning="Alarms raised so far, over all probes.",
        unit="alarms",
        good="0",
        act="`trimtab watch RUN` shows the reason for each alarm, the answers behind it and what to do.",
        where="online methods, unless `alarms` is `null`",
        live="{:.0f} alarms",
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
        act="If higher, normalise the reward (`mean`, `std`) or raise `align.score_clip`.",
        where="policy gradients",
    ),
    "filtered": Metric(
        title="Filtered answers",
        meaning="Share of answers that were cut and therefore left out of the loss (`align.overlong_filter`).",
        unit="share",
        good="below 20 %",
        act="If higher, much sampling is wasted: raise `max_new_tokens`, or penalise long answers (`missing_eos`, "
        "`overlong_buffer`) instead of filtering them.",
        where="policy gradients with `overlong_filter`",
    ),
    "importance_masked": Metric(
        title="Masked tokens",
        meaning="Share of tokens left out of the policy's loss because the sampler and the trainer disagree about them "
        "(`align.importance_beyond: mask`).",
        unit="share",
        good="below 1 %",
        act="If higher, see `mismatch`: the sampler's precision or kernels are too different.",
        where="policy gradients with `importance_beyond: mask`",
    ),
    "importance_ess": Metric(
        title="Effective sample size",
        meaning="(Σ ρ)² / (n·Σ ρ²) of the ratios ρ = π_trainer/π_sampler before they are capped, over tokens, or over "
        "answers with `align.importance_level: sequence`. The share of the samples that would be as informative if "
        "sampler and trainer agreed.",
        unit="share",
        good="above 0.99 with vLLM in float32, above 0.9 in bfloat16",
        act="If it falls, a few tokens have most of the weight: see `mismatch`, and raise the sampler's precision. "
        "`align.importance_beyond: mask` leaves such tokens out.",
        where="policy gradients with `importance_cap`",
    ),
    "reward_scale": Metric(
        title="Reward scale",
        meaning="Standard deviation of all scores so far, by which scores are divided (`align.running_scale`).",
        unit="reward",
        good="settles after a few steps",
        act="If it keeps growing, the reward is unbounded: see `score_clip`.",
        where="policy gradients with `running_scale`",
    ),
    "multiplier": Metric(
        title="Price of the cost",
        meaning="λ of this step: the weight of the cost in `align.constraint`. `reward` is shown without the cost.",
        unit="reward per unit of cost",
        good="settles; 0 if the cost stays below the limit without it",
        act="If it grows without end, no policy near the reference meets the limit: raise `limit`, or lower "
        "`kl.coefficient`. If it swings, lower `constraint.lr`.",
        where="policy gradients with `constraint`",
    ),
    "flat_groups": Metric(
        title="Flat groups",
        meaning="Share of prompts whose answers all earned the same reward; group methods learn nothing from them.",
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
        meaning="Mean tokens per answer. It rises when the policy earns reward by length alone.",
        unit="tokens",
        good="stays near the first step's",
        act="If it grows with the reward, the reward prefers length: add a reward for brevity, or retrain the reward "
        "model on pairs of similar length. If it reaches `max_new_tokens`, see `ended`.",
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
        meaning="Number of different texts as a share of the step's answers.",
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
        act="If larger, sampler and trainer disagree about the model: check precision, temperature and chat template, "
        "and set `importance_cap` (set by default with vLLM).",
        where="online methods",
    ),
    "policy_lag": Metric(
        title="Policy lag",
        meaning="Optimiser steps made since the weights that drew this step's answers.",
        unit="updates",
        good="the updates of one step; 0 in the first step",
        act="Nothing; it grows with `epochs` × `minibatches`. If `clip_fraction` is high too, lower them.",
        where="online methods with `one_step_off`",
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
        act="If fewer, `align.kl.stop` ended the step, or no group had different scores.",
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
        "advantages), `update`; with `one_step_off` also `wait`, for the next step's answers.",
        unit="seconds",
        good="`sample` and `update` dominate",
        act="If `sample` dominates, raise `sampler.slots`; if `score` does, the reward function is slow; if `update` "
        "does, use fewer `epochs` or a shared critic.",
        where="online methods",
    ),
}
"""Keys of ``metrics.jsonl`` and of TensorBoard. ``NAME`` and ``PHASE`` stand for any name."""
