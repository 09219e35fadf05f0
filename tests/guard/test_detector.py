"""The ensemble and the output probe on states with a known direction in them."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from trimtab.errors import DataError
from trimtab.guard.dataset import Example
from trimtab.guard.detector import Prepared, fit_detector, prepare
from trimtab.guard.evaluation import onset_table
from trimtab.guard.lexical import Lexical, Rules
from trimtab.guard.normalise import View
from trimtab.guard.output import AnswerStates, alarm, fit_output
from trimtab.guard.probe import Probe
from trimtab.guard.stream import Smoothing
from trimtab.guard.training import plant
from trimtab.testing import sentences

HARMLESS = sentences(120, words=6)
RESTRICTED = [f"{text[:-1]} in the vault." for text in sentences(120, words=6, start=500)]


def with_states(
    texts: list[str], labels: list[int], *, layers: int = 3, good: int = 1, seed: int = 0
) -> list[Prepared]:
    """Noise, and at one layer a direction that tells the labels."""
    draw = np.random.default_rng(seed)
    result = []
    for text, label in zip(texts, labels, strict=True):
        states = draw.normal(size=(1, 3, layers, 8)).astype(np.float32)
        states[:, :, good, 0] += 3 * label
        result.append(Prepared((View("raw", text),), (states,)))
    return result


def test_the_layer_with_the_direction_is_chosen_and_the_ensemble_beats_its_members():
    texts, labels = HARMLESS + HARMLESS[:60], [0] * 120 + [1] * 60  # the words say nothing
    fitted = fit_detector(with_states(texts, labels), labels, range(180), budget=0.05)
    assert fitted.detector.members[1].place.layer == 1
    assert np.argmax(fitted.layer_scores["mean"]) == 1
    held = with_states(texts, labels, seed=1)
    scores = fitted.detector.values(held)
    assert np.mean(scores[:120] > fitted.detector.threshold) < 0.1
    assert np.mean(scores[120:] > fitted.detector.threshold) > 0.7


def test_words_alone_and_the_view_that_shows_them():
    texts, labels = HARMLESS + RESTRICTED, [0] * 120 + [1] * 120
    detector = fit_detector(prepare(texts), labels, range(240), budget=0.05).detector
    spelled = "please open the v-a-u-l-t tomorrow and look in the v-a-u-l-t"
    score = detector.scores(prepare([spelled]))[0]
    assert score.view == "normalised" and score.value > detector.threshold
    assert detector.scores([]) == []


def test_the_threshold_keeps_the_budget_out_of_fold():
    texts, labels = HARMLESS + RESTRICTED, [0] * 120 + [1] * 120
    fitted = fit_detector(prepare(texts), labels, range(240), budget=0.1)
    assert sum(fitted.out_of_fold[:120] > fitted.detector.threshold) <= 12


def test_a_long_text_is_scored_by_its_worst_window():
    texts, labels = HARMLESS + RESTRICTED, [0] * 120 + [1] * 120
    detector = fit_detector(prepare(texts), labels, range(240), budget=0.05).detector
    long = " ".join(HARMLESS[:60])
    inside = f"{' '.join(HARMLESS[:30])} {' '.join(RESTRICTED[:6])} {' '.join(HARMLESS[30:60])}"
    plain, hidden = detector.values(prepare([long, inside]))
    assert hidden > plain


def test_too_few_groups_or_labels():
    with pytest.raises(DataError, match="in at least two groups each"):
        fit_detector(prepare(HARMLESS), [0] * 120, range(120), budget=0.1)
    with pytest.raises(DataError, match="in at least two groups each"):
        fit_detector(prepare(HARMLESS), [0, 1] * 60, ["one"] * 120, budget=0.1)


def test_a_probe_is_logistic_regression_on_standardised_states():
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(200, 5)) * [1, 10, 0.1, 1, 1] + 3, draw.integers(0, 2, 200)
    x[:, 1] += 5 * y
    probe = Probe.fit(x, y, strength=0.5)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, class_weight="balanced")).fit(x, y)
    np.testing.assert_allclose(probe.logits(x), model.decision_function(x), atol=0.02)


def test_lexical_restores_what_it_was():
    labels = [0] * 120 + [1] * 120
    lexical = Lexical.fit(HARMLESS + RESTRICTED, labels)
    again = Lexical.restored(lexical.vocabulary(), lexical.arrays())
    np.testing.assert_allclose(again.logits(RESTRICTED), lexical.logits(RESTRICTED), atol=1e-5)
    assert lexical.strongest("a boat in the vault")[0][0] in ("vault", "the vault", "in the")


def test_rules_are_named_by_their_words():
    texts = [*RESTRICTED[:40], *(t.replace("vault", "cellar") for t in RESTRICTED[40:80])]
    lexical = Lexical.fit(texts + HARMLESS, [1] * 80 + [0] * 120)
    rules = Rules.fit(lexical, texts, ["money"] * 40 + ["wine"] * 40)
    assert rules.nearest("what is in the cellar") == "wine" and rules.nearest("the vault is open") == "money"
    assert Rules.fit(lexical, texts[:4], ["money"] * 4).nearest("anything") == "money"


def planted(count: int, *, seed: int, shift: float = 1.5) -> list[AnswerStates]:
    draw = np.random.default_rng(seed)
    answers = []
    for number in range(count):
        states = draw.normal(size=(60, 2, 6)).astype(np.float32)
        onset = None if number % 2 else int(draw.integers(10, 30))
        if onset is not None:
            states[onset:, 1, 2] += shift
        answers.append(AnswerStates(states=states, onset=onset, fold=number // 2 % 5))
    return answers


class Words:
    """A tokenizer that gives each sentence of words a token per word, and a prompt of one token."""

    def __init__(self) -> None:
        self.chat, self.number = self, {}

    def prompt(self, messages):
        return [0]

    def tokenizer(self, text, **_):
        return {"input_ids": [self.number.setdefault(word, len(self.number)) for word in text.split()]}


def said_once(per_kind: int) -> list[Example]:
    """Sentences of ten equal words that no other sentence has."""
    return [
        Example(text=f"{kind}{n} " * 10, restricted=kind == "bad", kind="answer", rule="r", group=f"{kind}{n}")
        for kind in ("bad", "good")
        for n in range(per_kind)
    ]  # fmt: skip


def test_folds_of_planted_answers_share_no_sentence():
    planted_answers = plant(Words(), said_once(12), [], 100, folds=5, seed=0)
    words = [set().union(*(p.answer for p in planted_answers if p.fold == f)) for f in range(5)]
    assert all(words) and sum(map(len, words)) == len(set().union(*words)) == 24
    assert {p.fold for p in plant(Words(), said_once(3), [], 40, folds=5, seed=0)} == {0, 1, 2}
    assert {p.fold for p in plant(Words(), said_once(12), [], 40, seed=0)} == {0}


def test_states_that_mean_nothing_are_at_chance_out_of_fold():
    """A random vector per word says nothing of a sentence that was not seen: AUROC is one half."""
    scores = []
    for seed in range(6):
        draw = np.random.default_rng(seed)
        vectors = draw.normal(size=(60, 1, 40)).astype(np.float32)
        answers = [
            AnswerStates(states=vectors[p.answer], onset=p.onset, fold=p.fold)
            for p in plant(Words(), said_once(30), [], 120, folds=5, seed=seed)
        ]
        scores += fit_output(answers, [1], budget=0.05).layer_scores
    assert np.mean(scores) == pytest.approx(0.5, abs=0.12)


def test_a_planted_onset_is_found_soon_and_within_the_budget():
    fitted = fit_output(planted(200, seed=0), [4, 9], budget=0.02)
    assert fitted.probe.layer == 9
    table = onset_table(fitted.probe, planted(200, seed=1), layer=1)
    assert table.delay <= 8 and table.false_alarms.value <= 0.06
    leaks = [row.leaks.value for row in table.hold_back]
    assert leaks == sorted(leaks, reverse=True) and leaks[-1] < 0.05 < leaks[0]
    tokens = [row.tokens for row in table.hold_back]
    assert tokens == sorted(tokens, reverse=True)


def test_the_sum_finds_a_change_sooner_than_a_single_token():
    answers = planted(200, seed=2)
    fitted = fit_output(answers, [4, 9], budget=0.02)
    delays = fitted.delays
    assert min(v for n, v in delays.items() if n.startswith("cusum")) < delays["exponential 1"]


def test_the_calibration_is_in_the_probe():
    fitted = fit_output(planted(100, seed=3), [4, 9], budget=0.05, candidates=[Smoothing(kind="cusum")])
    held = planted(100, seed=4)
    z = np.concatenate([fitted.probe.token_scores(a.states[:, 1]) for a in held])
    y = np.concatenate([np.arange(60) >= (60 if a.onset is None else a.onset) for a in held])
    even = np.where(y, 0.5 / y.mean(), 0.5 / (1 - y.mean()))  # both kinds weigh the same, as in the calibration
    probability = 1 / (1 + np.exp(-z))
    assert np.average(probability[y], weights=even[y]) > 0.6
    middle = (probability > 0.4) & (probability < 0.6)
    assert np.average(y[middle], weights=even[middle]) == pytest.approx(0.5, abs=0.1)
    assert alarm(z[:1], fitted.probe.smoothing, 1e9) is None


def test_answers_without_any_restricted_part():
    with pytest.raises(DataError, match="answers with restricted text"):
        fit_output([a for a in planted(20, seed=0) if a.onset is None], [4, 9], budget=0.1)
