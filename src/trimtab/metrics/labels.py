"""Numbers about labels: agreement, AI judges, Constitutional AI, the annotation app."""

from collections.abc import Mapping

from trimtab.metrics.entry import Metric

AGREEMENT: Mapping[str, Metric] = {
    "raw_agreement": Metric(
        title="Raw agreement of two annotators",
        meaning="How often two annotators give the same verdict on a pair of answers; a tie is a verdict too.",
        unit="share",
        good="above 65 % for preferences",
        act="Improve the guideline and its examples before collecting more; look at *Disagreements*.",
    ),
    "leave_one_out": Metric(
        title="One annotator against the others",
        meaning="How often an annotator who chose a winner chose the same one as the others' net vote; ½ if the "
        "others are even.",
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
    "strength_alpha": Metric(
        title="α of the strength of preference",
        meaning="Krippendorff's α over how strongly one answer is preferred, from −1 through 0 (a tie) to 1. A small "
        "difference is a small disagreement.",
        unit="1",
        good="as α, or above it: people disagree where the answers are close",
        act="If below α, people disagree where they are sure: look at *Disagreements*, where the widest apart come "
        "first.",
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
        meaning="Agreement corrected for chance that stays meaningful when nearly all judgements are the same.",
        unit="1",
        good="as α, or above it",
        act="If it is high while α is low, one answer is nearly always chosen; look at raw agreement.",
    ),
    "first_shown_wins": Metric(
        title="The answer shown first wins",
        meaning="Of pairs with a winner, how often the answer shown first won.",
        unit="share",
        good="an interval that includes 50 %",
        act="Otherwise annotators may not read to the end: use shorter answers and attention items.",
    ),
    "longest_wins": Metric(
        title="The longest answer wins",
        meaning="Of pairs with a winner, how often the longer answer won.",
        unit="share",
        good="near 50 %, unless longer is better in this task",
        act="State in the guideline how much length matters; pair answers of similar length.",
    ),
    "three_cycles": Metric(
        title="Cycles among three answers (expected by chance: ¼)",
        meaning="Of triples of answers with a net winner in each pair, how many form a cycle.",
        unit="share",
        good="well below 25 %",
        act="Near 25 % the preferences are not consistent: define a clearer criterion.",
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
        meaning="Judgements given, out of those that all items need.",
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
        act="Look at this annotator's check items and agreement; talk to the annotator, pause them, or leave their "
        "labels out.",
    ),
    "checks": Metric(
        title="Check items right",
        meaning="Share of gold and attention items that an annotator answered as expected.",
        unit="share",
        good="above 80 %",
        act="If one annotator is below, train or pause that annotator; if all are, the check item is probably wrong.",
    ),
    "agreement": Metric(
        title="Agreement with the others",
        meaning="Share of an annotator's winners that are also the others' net winner (½ if the others are even).",
        unit="share",
        good="within 10 points of the others",
        act="As for checks.",
    ),
}
"""Numbers of the annotation app's dashboard. Agreement and biases are as in :data:`AGREEMENT`."""
