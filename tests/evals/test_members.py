"""How far reward models err together, by hand."""

import pytest

from trimtab.errors import DataError
from trimtab.evals import member_errors
from trimtab.records import Completion, Preference, Prompt


def pair(number: int, ranks: tuple[int, int] = (0, 1)) -> Preference:
    return Preference(
        id=str(number),
        prompt=Prompt.from_text(f"Question {number}"),
        completions=(Completion(text="good"), Completion(text="bad")),
        ranks=ranks,
        judgements=(),
    )


RIGHT, WRONG, TIED = [1.0, 0.0], [0.0, 1.0], [2.0, 2.0]


def test_correlation_and_effective_number_by_hand():
    """Errors 0 1 1 0 and 0 1 0 0: covariance 1/8, deviations 1/2 and √3/4, so ρ = 1/√3 and 2/(1 + ρ) models."""
    pairs = [pair(i) for i in range(4)]
    scores = {"a": [RIGHT, WRONG, WRONG, RIGHT], "b": [RIGHT, WRONG, RIGHT, RIGHT]}
    result = member_errors(pairs, scores)
    assert result.names == ("a", "b") and result.error_rates == (0.5, 0.25)
    assert result.correlation.value == pytest.approx(3**-0.5) and result.correlation.n == 4
    assert result.effective.value == pytest.approx(2 / (1 + 3**-0.5))


def test_the_same_model_twice_is_worth_one():
    pairs = [pair(i) for i in range(6)]
    rows = [RIGHT, WRONG, RIGHT, TIED, WRONG, RIGHT]
    result = member_errors(pairs, {"a": rows, "b": rows})
    assert result.error_rates == (pytest.approx(2.5 / 6),) * 2
    assert result.correlation.value == pytest.approx(1) and result.effective.value == pytest.approx(1)


def test_without_errors_there_is_no_correlation():
    result = member_errors([pair(i) for i in range(3)], {"a": [RIGHT] * 3, "b": [RIGHT, WRONG, RIGHT]})
    assert result.correlation.value is None and "makes no error" in result.correlation.reason
    assert result.effective.value is None


def test_what_cannot_be_compared():
    with pytest.raises(DataError, match="two models or more, got 1"):
        member_errors([pair(0)], {"a": [RIGHT]})
    with pytest.raises(DataError, match="none of 1 held-out preferences has a better and a worse answer"):
        member_errors([pair(0, ranks=(0, 0))], {"a": [RIGHT], "b": [RIGHT]})
