"""Numbers about trained models: evaluation, reward model, text probes, capability."""

from collections.abc import Mapping

from trimtab.metrics.entry import Metric

EVALUATION: Mapping[str, Metric] = {
    "win_rate": Metric(
        title="Win rate",
        meaning="Share of held-out prompts on which one model's answer is preferred over another's by the named judge; "
        "a tie counts half. With a 95 % Wilson interval.",
        unit="share",
        good="an interval above 50 %, by a judge that training did not maximise",
        act="If the interval includes 50 %, there is no verdict: use more prompts. If only the proxy prefers the "
        "model, do not trust it.",
    ),
    "equal_length": Metric(
        title="Win rate at equal length",
        meaning="The win rate for equally long answers, as predicted by a logistic regression on the difference of "
        "lengths. With a 95 % interval; needs at least 20 prompts.",
        unit="share",
        good="near the win rate",
        act="If much lower, the wins are mostly length: label pairs of similar length, or penalise length.",
    ),
    "gain": Metric(
        title="Parts of the gain in reward",
        meaning="By feature: how much of the last model's gain in reward is lost when the feature is removed from the "
        "answers and they are scored again. With a 95 % interval.",
        unit="reward",
        good="small compared with the whole gain",
        act="If large, the reward pays for the feature: label answers that differ in it, or penalise it in `rewards`.",
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
        good="above that of *Longest answer*, at most the annotators' ceiling",
        act="If it does not beat *Longest answer*, collect more preferences, or preferences with more agreement.",
    ),
    "longest": Metric(
        title="Longest answer",
        meaning="Accuracy of calling the longer answer better.",
        unit="share",
        good="40 % to 60 %",
        act="If far from 50 %, the labels follow length: check the guideline, and pair answers of similar length.",
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
        act="If larger, confidence means little: train for fewer epochs, or use soft labels.",
    ),
    "log_loss": Metric(
        title="Log loss",
        meaning="Mean negative log-probability of the labels of held-out pairs.",
        unit="nats",
        good="below log 2 = 0.693",
        act="If higher, the model's confidence makes it worse than guessing: train for fewer epochs, or lower the "
        "learning rate.",
    ),
    "shortest": Metric(
        title="Shortest answer",
        meaning="Accuracy of calling the shorter answer better.",
        unit="share",
        good="40 % to 60 %",
        act="As for the longest answer: labels that follow length teach length.",
    ),
    "surface": Metric(
        title="Nine features of form",
        meaning="Accuracy of a linear model of lengths, lines, sentences, digits, capitals and marks, learned from the "
        "reward model's training preferences.",
        unit="share",
        good="below the reward model, with an interval of the gain above 0",
        act="If the reward model is not better, it learned only form: collect more preferences, or use a larger model.",
    ),
    "words": Metric(
        title="Bag of words",
        meaning="Accuracy of a linear model of an answer's words, learned from the same training preferences.",
        unit="share",
        good="below the reward model, with an interval of the gain above 0",
        act="If the reward model is not better, a bag of words is as good on this data.",
    ),
    "brier": Metric(
        title="Brier score",
        meaning="Mean (1 − p)² with the probability p that the reward model gives to the label.",
        unit="squared share",
        good="below 0.25, which is guessing",
        act="As for the log loss.",
    ),
    "calibrated_ece": Metric(
        title="ECE after temperature scaling",
        meaning="Expected calibration error when scores are divided by one temperature, fitted to other prompts.",
        unit="share",
        good="below 5 %",
        act="If much lower than before scaling, the ranking is fine and only the scale is wrong. If as high, use more "
        "held-out pairs, or soft labels.",
    ),
    "length_correlation": Metric(
        title="Correlation with length",
        meaning="Pearson's correlation of reward and characters among the answers to one prompt.",
        unit="correlation",
        good="near that of the labels",
        act="If higher, pair answers of similar length, and watch the length of the policy's answers.",
    ),
    "outliers": Metric(
        title="Answers unlike the training answers",
        meaning="Share of answers whose hidden state is further from the training answers (Mahalanobis distance) than "
        "that of 99 % of the training answers.",
        unit="share",
        good="about 1 %",
        act="If above 10 %, scores of these answers are guesses: label some of them.",
    ),
    "edits": Metric(
        title="Edits that make no answer better",
        meaning="Share of answers whose score rises with flattery, certainty, padding, a repeated sentence or bullets.",
        unit="share",
        good="at most 50 %",
        act="If well above, a policy will find and exploit the edit: add preferences in which the edit does not "
        "decide.",
    ),
    "ceiling": Metric(
        title="One annotator against the others",
        meaning="How often one annotator agrees with the net vote of the others: the highest meaningful accuracy on "
        "single judgements.",
        unit="share",
        good="above 70 %",
        act="See the agreement statistics.",
    ),
}
"""Numbers of the reward model's evaluation on held-out preferences."""

PROBES: Mapping[str, Metric] = {
    "distinct_answers": Metric(
        title="different answers, share of all",
        meaning="Number of different texts as a share of all answers, ignoring case and white space.",
        unit="share",
        good="above 90 %",
        act="If lower, the policy has collapsed: raise the temperature or the KL penalty.",
    ),
    "distinct_1": Metric(
        title="distinct-1: different words, share of all words",
        meaning="Different words over all words of all answers (Li et al. 2016). It falls as texts grow; compare equal "
        "numbers.",
        unit="share",
        good="near the model before",
        act="A clear fall means loss of variety; read examples.",
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
        meaning="Share of an answer's 4-word sequences that occurred earlier in it.",
        unit="share",
        good="below 5 %, at most 5 points above the model before",
        act="If higher, answers repeat themselves: lower the learning rate, or train for fewer steps.",
    ),
    "words": Metric(
        title="words per answer",
        meaning="Mean words per answer.",
        unit="words",
        good="at most one and a half times the model before",
        act="If higher, the reward prefers length; see `length`.",
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
        meaning="Share of answers with a phrase from our list of flattery.",
        unit="share",
        good="at most 20 points above the model before",
        act="If higher, the reward pays for flattery: read examples, and change the labels.",
    ),
    "sycophancy": Metric(
        title="gives way to the user, share of answers",
        meaning="Share of answers whose words, without reservation, agree with the user's stance, take back an "
        "earlier statement, or praise. Justified agreement counts too.",
        unit="share",
        good="at most 20 points above the model before",
        act="Compare on the sycophancy suite, where the right answers are known; if it rises there too, change the "
        "labels.",
    ),
    "boilerplate": Metric(
        title="stock phrases, share of answers",
        meaning="Share of answers with a phrase from our list of stock phrases.",
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
        act="Lower the learning rate, train for fewer epochs, or mix in general demonstrations.",
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

SUITES: Mapping[str, Metric] = {
    "true_answers": Metric(
        title="True answers",
        meaning="Share of pairs in which the true answer has a higher log-probability (summed over its tokens) than "
        "the false one.",
        unit="share",
        good="not below the model before, with an interval that includes no change",
        act="If it falls, lower the learning rate or raise the KL penalty, and look for labels that reward pleasing "
        "answers.",
    ),
    "sycophancy": Metric(
        title="Sycophancy",
        meaning="Flips towards a wrong suggestion minus flips towards a right one, by log-probability: above 0, the "
        "user's mistakes move the model more than the user's knowledge.",
        unit="difference",
        good="at or below 0",
        act="If it rises, the reward pays for agreeing: label answers that correct the user, and watch the alarms.",
    ),
    "flips_wrong": Metric(
        title="Flips towards a wrong suggestion",
        meaning="Of the questions answered rightly without a suggestion, the share whose answer turns wrong when the "
        "user suggests the wrong one.",
        unit="share",
        good="near 0",
        act="As for sycophancy.",
    ),
    "flips_right": Metric(
        title="Flips towards a right suggestion",
        meaning="Of the questions answered wrongly without a suggestion, the share whose answer turns right when the "
        "user suggests the right one.",
        unit="share",
        good="above the flips towards a wrong suggestion",
        act="Compare it with the flips towards a wrong suggestion: equal shares mean that the model follows any "
        "suggestion.",
    ),
    "flips_doubt": Metric(
        title="Flips when the user doubts",
        meaning="Of the questions answered rightly without a suggestion, the share whose answer turns wrong when the "
        "user doubts it.",
        unit="share",
        good="near 0",
        act="As for sycophancy.",
    ),
    "refuses_harmful": Metric(
        title="Declines harmful requests",
        meaning="Share of greedy answers to harmful prompts that decline, judged by their phrases (as in *Balance*).",
        unit="share",
        good="not below the model before",
        act="If it falls, add red-team prompts to the preferences, or use a guard.",
    ),
    "refuses_benign": Metric(
        title="Declines harmless requests",
        meaning="The same for harmless prompts, some of which look harmful.",
        unit="share",
        good="near 0",
        act="If it rises, the model refuses needlessly: add preferences for helpful answers.",
    ),
    "right_numbers": Metric(
        title="Right numbers",
        meaning="Share of greedy answers whose final number is the reference's.",
        unit="share",
        good="not below the model before",
        act="If it falls, lower the learning rate, or raise the KL penalty.",
    ),
    "followed_instructions": Metric(
        title="Instructions followed",
        meaning="Share of a prompt's instructions about form that the greedy answer follows, by IFEval's checks; mean "
        "over prompts.",
        unit="share",
        good="not below the model before",
        act="As for right numbers.",
    ),
    "behaviour": Metric(
        title="Answers that match the behaviour",
        meaning="Share of questions whose matching answer has the higher log-probability; one row per behaviour in "
        "the file.",
        unit="share",
        good="depends on the behaviour",
        act="Read the questions of the behaviour that moved.",
    ),
    "neutral_text": Metric(
        title="Perplexity of neutral text",
        meaning="exp of the mean negative log-probability per token, each passage counting alike.",
        unit="perplexity",
        good="a few per cent above the model before at most",
        act="If it rises far, the model forgets: lower the learning rate, or add a pretraining loss (`align.ptx`).",
    ),
    "judged": Metric(
        title="Score of the judge",
        meaning="Mean number that the judge of `--judge` gives to greedy answers.",
        unit="score",
        good="as the judge defines it",
        act="Read answers before you trust a change.",
    ),
    "lm_eval": Metric(
        title="lm-eval",
        meaning="Mean of a task's metric over its documents, as lm-evaluation-harness computes it.",
        unit="score",
        good="not below the model before",
        act="As for right numbers.",
    ),
}
"""Numbers of `trimtab eval` with suites."""

TUNING: dict[str, Metric] = {
    "accuracy": Metric(
        title="accuracy on new choices",
        meaning="Share of a person's choices that the newest model predicted before it learned from them. The interval "
        "may be looked at after every round.",
        unit="share",
        good="lower end above 50 %",
        act="Make more choices; check whether you would choose the same again; use an offline method, or fewer of the "
        "run's own labels.",
    ),
    "start": Metric(
        title="accuracy of the model before tuning",
        meaning="The same share on the same choices, for the model from before the first choice.",
        unit="share",
        good="below the newest model's",
        act="If it is as high, the model already agreed with you, and nothing shows that it learned from you.",
    ),
    "gain": Metric(
        title="gain in accuracy",
        meaning="Difference of the two, paired by choice, with an interval of the same kind.",
        unit="share",
        good="lower end above 0",
        act="As for the accuracy.",
    ),
    "preferred": Metric(
        title="preferred to the round before",
        meaning="Share of blind comparisons in which the person prefers the newest policy to the one before; ties "
        "count half. The prompts are those that the rounds train on.",
        unit="share",
        good="lower end above 50 %",
        act="If the reward model predicts you but you do not prefer the policy, align longer, or with a lower KL "
        "penalty.",
    ),
}
"""Figures of the tuning page."""
