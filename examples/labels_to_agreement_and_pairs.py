"""Your own labels: how well the annotators agree, and the training pairs they make.

Run: python examples/labels_to_agreement_and_pairs.py
"""

from trimtab import Comparison, Judgement, Prompt, aggregate, agreement_report

items = [
    Comparison.of(Prompt.from_text("What is a trim tab?"), ["A small surface on a rudder.", "No idea."]),
    Comparison.of(Prompt.from_text("Name a fish."), ["A dog.", "A trout."]),
    Comparison.of(Prompt.from_text("Is tea hot?"), ["Usually.", "It depends on when it was made."]),
]
# (annotator, item, answers as shown from left to right, rank of each shown answer: 0 is best)
labels = [
    ("ann", 0, (0, 1), (0, 1)),
    ("bob", 0, (1, 0), (1, 0)),  # shown the other way round, same verdict
    ("ann", 1, (0, 1), (1, 0)),
    ("bob", 1, (0, 1), (1, 0)),
    ("ann", 2, (1, 0), (0, 1)),
    ("bob", 2, (0, 1), (0, 0)),  # a tie
]
judgements = [
    Judgement(id=f"{who}-{n}", item=items[n].id, annotator=who, source="human", shown_order=order, ranks=ranks)
    for who, n, order, ranks in labels
]
for name, estimate in agreement_report(items, judgements).items():
    value = estimate.reason if estimate.value is None else f"{estimate.value:.2f} [{estimate.low}, {estimate.high}]"
    print(f"{name:20} {value}")
for preference in aggregate(items, judgements).preferences:
    print(preference.prompt.text, preference.ranks, preference.probability, "from", ", ".join(preference.judgements))
