"""Cohorts: win rates, disagreement and weightings, counted by hand; small cohorts are not shown."""

import json

import pytest

from trimtab.cli.app import run_app
from trimtab.errors import ConfigError
from trimtab.feedback.intervals import clustered_wilson_interval
from trimtab.feedback.populations import UNNAMED, population
from trimtab.records import Comparison, Completion, Judgement, Prompt, write_records

ITEMS = [
    Comparison.of(Prompt.from_text(f"q{i}"), [Completion(text="x", model="new"), Completion(text="y", model="old")])
    for i in range(4)
]


def judged(cohort: str | None, people: int, *wins: float) -> list[Judgement]:
    """Everybody of a cohort says the same of each item: 1 for new, ½ a tie, 0 for old."""
    ranks = {1.0: (0, 1), 0.5: (0, 0), 0.0: (1, 0)}
    made = []
    for person in range(people):
        for item, win in zip(ITEMS, wins, strict=True):
            new = [c.model for c in item.completions].index("new")
            shown = (new, 1 - new)
            name = f"{cohort}-{person}"
            made.append(
                Judgement(
                    id=f"{name}-{item.id}",
                    item=item.id,
                    annotator=name,
                    source="human",
                    shown_order=shown,
                    ranks=ranks[win],
                    cohort=cohort,
                )
            )
    return made


def test_by_hand():
    both = judged("de", 4, 1.0, 1.0, 1.0, 0.0) + judged("fr", 2, 0.0, 1.0, 0.5, 0.0)
    result = population(ITEMS, both, least=2, weights={"de": 1.0, "fr": 3.0})
    assert (result.model, result.rival) == ("new", "old")
    de, fr = result.cohorts
    assert (de.name, de.people, de.judgements, de.rate.value) == ("de", 4, 16, 0.75) and fr.rate.value == 0.375
    prompts = [item.prompt.id for item in ITEMS]
    low, high = clustered_wilson_interval([1.0, 1.0, 1.0, 0.0] * 4, prompts * 4)
    assert (de.rate.low, de.rate.high) == (low, high)
    # Three items have a majority in both; on the first they differ.
    assert result.disagreement.value == pytest.approx(
        1 / 3
    ) and de.agreement.value == fr.agreement.value == pytest.approx(2 / 3)
    shares = {name: rate.value for name, rate in result.weightings.items()}
    assert shares == {
        "as judged": pytest.approx((16 * 0.75 + 8 * 0.375) / 24),
        "each cohort alike": pytest.approx(0.5625),
        "as given": pytest.approx(0.25 * 0.75 + 0.75 * 0.375),
    }
    assert all(rate.low <= rate.value <= rate.high for rate in result.weightings.values())


def test_small_cohorts_parts_and_settled_items():
    mixed = judged("language=de, region=south", 2, 1.0, 1.0, 1.0, 1.0) + judged(
        "language=de, region=north", 1, 0.0, 0.0, 0.0, 0.0
    )
    result = population(ITEMS, mixed, by="language", least=3)
    assert [(c.name, c.people) for c in result.cohorts] == [("de", 3)]
    whole = population(ITEMS, mixed, least=2)
    assert [(c.name, c.people) for c in whole.cohorts] == [("language=de, region=south", 2), (UNNAMED, 1)]
    assert whole.notes == ("1 cohorts with fewer than 2 people each (1 people) are shown as 'not named'",)
    assert whole.disagreement.value is None


def test_no_models_and_wrong_weights():
    plain = [Comparison.of(Prompt.from_text("q"), ["x", "y"])]
    vote = Judgement(id="1", item=plain[0].id, annotator="a", source="human", shown_order=(0, 1), ranks=(0, 1))
    result = population(plain, [vote])
    assert result.model is None and result.weightings == {} and "compared no such" in result.cohorts[0].rate.reason
    both = judged("de", 2, 1.0, 1.0, 1.0, 0.0)
    with pytest.raises(ConfigError, match="weight of 'xx': no such cohort has compared the models; there are de"):
        population(ITEMS, both, least=2, weights={"xx": 1.0})
    with pytest.raises(ConfigError, match="above 0 in sum"):
        population(ITEMS, both, least=2, weights={"de": 0.0})


def test_the_command(tmp_path, capsys):
    write_records(tmp_path / "comparisons.jsonl", ITEMS)
    write_records(
        tmp_path / "judgements.jsonl", judged("de", 2, 1.0, 1.0, 1.0, 0.0) + judged("fr", 2, 0.0, 1.0, 0.5, 0.0)
    )
    assert run_app(["populations", str(tmp_path), "--least", "2", "--weight", "de=1", "--weight", "fr=1"]) == 0
    printed = capsys.readouterr().out
    assert "new over old, as given: 56%" in printed and "cohorts disagree on 33%" in printed
    assert run_app(["populations", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cohorts"][0]["name"] == UNNAMED
    assert run_app(["populations", str(tmp_path), "--weight", "de"]) != 0
    assert "expected COHORT=SHARE" in capsys.readouterr().err
