"""Baselines for a reward model: scores of simple rules and simple models on the same pairs.

A reward model that does not beat the length of an answer, nine numbers about its form, or the words in it, has learned
nothing that needs a language model. The linear models are Bradley–Terry models on differences of features, with a ridge
penalty that is chosen by cross-validation over prompts.

This module imports NumPy and SciPy, so it is imported where it is used and not with the package.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.feedback.words import WORD
from trimtab.records import Preference

Floats = NDArray[np.float64]
Scores = list[list[float]]
"""``scores[i][k]``: score of answer k of preference i."""

PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Ridge penalties, in units of one pair's loss."""
FOLDS = 5


def baseline_scores(
    preferences: Sequence[Preference], *, train: Sequence[Preference] | None = None, seed: int = 0
) -> dict[str, Scores]:
    """Scores of every answer by the four baselines.

    Args:
        preferences: the preferences whose answers are scored.
        train: training set of the linear models (a fair choice is the reward model's own); None: they are cross-fitted
            on ``preferences`` in five folds by prompt, so that no answer is scored by a model that saw its prompt.
        seed: of the folds.

    Returns:
        ``longest`` and ``shortest`` (characters, and minus that), ``surface`` (:func:`surface_features`) and ``words``
        (log(1 + count) of words that occur in two answers or more).
    """
    lengths = [[float(len(c.text)) for c in p.completions] for p in preferences]
    scores = {"longest": lengths, "shortest": [[-n for n in row] for row in lengths]}
    for name, features in (("surface", _surface_matrix), ("words", _word_matrix)):
        scores[name] = _linear_scores(features, preferences, train, seed)
    return scores


def surface_features(text: str) -> list[float]:
    """Nine numbers about the form of a text.

    Logarithms of 1 + the numbers of characters, words, line breaks and sentences; characters per word; different words
    as a share of all words; digits and capital letters as shares of all characters; question and exclamation marks per
    sentence.
    """
    words = WORD.findall(text)
    characters, count = max(1, len(text)), max(1, len(words))
    sentences = len(re.findall(r"[.!?]+(?:\s|$)", text))
    return [
        math.log1p(len(text)),
        math.log1p(len(words)),
        math.log1p(text.count("\n")),
        math.log1p(sentences),
        sum(map(len, words)) / count,
        len({w.lower() for w in words}) / count,
        sum(c.isdigit() for c in text) / characters,
        sum(c.isupper() for c in text) / characters,
        (text.count("?") + text.count("!")) / max(1, sentences),
    ]


def _texts(preferences: Sequence[Preference]) -> list[str]:
    return [c.text for p in preferences for c in p.completions]


def _surface_matrix(train_texts: Sequence[str], test_texts: Sequence[str]) -> tuple[Any, Any]:
    sparse: Any = import_module("scipy.sparse")
    train_features = np.array([surface_features(t) for t in train_texts])
    mean, deviation = train_features.mean(0), np.maximum(train_features.std(0), 1e-9)
    scaled = [
        (np.array([surface_features(t) for t in texts]) - mean) / deviation for texts in (train_texts, test_texts)
    ]
    return sparse.csr_matrix(scaled[0]), sparse.csr_matrix(scaled[1])


def _word_matrix(train_texts: Sequence[str], test_texts: Sequence[str]) -> tuple[Any, Any]:
    vocabulary = _vocabulary(train_texts)
    return _word_counts(train_texts, vocabulary), _word_counts(test_texts, vocabulary)


def _vocabulary(texts: Sequence[str]) -> dict[str, int]:
    """Column of each word that occurs in two texts or more, in alphabetical order."""
    text_counts = Counter(w for text in texts for w in {w.lower() for w in WORD.findall(text)})
    return {w: i for i, w in enumerate(sorted(w for w, n in text_counts.items() if n > 1))}


def _word_counts(texts: Sequence[str], vocabulary: Mapping[str, int]) -> Any:
    """log(1 + count) of each word of the vocabulary in each text; one column of zeros if there are no words."""
    sparse: Any = import_module("scipy.sparse")
    word_counts = [Counter(w.lower() for w in WORD.findall(t)) for t in texts]
    cells = [
        (r, vocabulary[w], math.log1p(n)) for r, c in enumerate(word_counts) for w, n in c.items() if w in vocabulary
    ]
    row, column, value = zip(*cells, strict=True) if cells else ((), (), ())
    return sparse.csr_matrix((value, (row, column)), shape=(len(texts), max(1, len(vocabulary))))


def _linear_scores(
    features: Callable[[Sequence[str], Sequence[str]], tuple[Any, Any]],
    preferences: Sequence[Preference],
    train: Sequence[Preference] | None,
    seed: int,
) -> Scores:
    if train is not None:
        return _by_preference(_fit_and_score(features, train, preferences, seed), preferences)
    fold = _folds([p.prompt.id for p in preferences], seed)
    scores: Scores = [[] for _ in preferences]
    for number in set(fold):
        test_indices = [i for i, f in enumerate(fold) if f == number]
        train_preferences = [p for p, f in zip(preferences, fold, strict=True) if f != number]
        test_preferences = [preferences[i] for i in test_indices]
        for i, row in zip(
            test_indices,
            _by_preference(_fit_and_score(features, train_preferences, test_preferences, seed), test_preferences),
            strict=True,
        ):
            scores[i] = row
    return scores


def _folds(prompts: Sequence[str], seed: int) -> list[int]:
    """Fold of each prompt; with one prompt there is one fold and nothing to learn from."""
    names = sorted(set(prompts))
    random.Random(seed).shuffle(names)
    fold_of = {name: number % FOLDS for number, name in enumerate(names)}
    return [fold_of[name] for name in prompts]


def _by_preference(values: Floats, preferences: Sequence[Preference]) -> Scores:
    remaining = iter(values.tolist())
    return [[next(remaining) for _ in p.completions] for p in preferences]


def _fit_and_score(
    features: Callable[[Sequence[str], Sequence[str]], tuple[Any, Any]],
    train: Sequence[Preference],
    test: Sequence[Preference],
    seed: int,
) -> Floats:
    """Scores of the test answers by a model of the training pairs; all 0 if there are no pairs."""
    if not len(_pairs(train)[0]):
        return np.zeros(sum(len(p.completions) for p in test))
    train_features, test_features = features(_texts(train), _texts(test))
    return test_features @ _weights(train_features, train, seed)


def word_weights(preferences: Sequence[Preference], *, seed: int = 0) -> dict[str, float]:
    """The bag of words as a separate model: the weight of each word that occurs in two answers or more.

    Args:
        preferences: the training set.
        seed: of the folds that choose the penalty.
    """
    texts = _texts(preferences)
    vocabulary = _vocabulary(texts)
    weights = _weights(_word_counts(texts, vocabulary), preferences, seed)
    return dict(zip(vocabulary, weights.tolist(), strict=False))


def word_score(text: str, weights: Mapping[str, float]) -> float:
    """Σ weight · log(1 + count) over the words of a text; words without a weight count nothing.

    >>> round(word_score("Tea, tea and milk", {"tea": 1.0, "milk": -0.5}), 3)
    0.752
    """
    counts = Counter(w.lower() for w in WORD.findall(text))
    return math.fsum(weights.get(word, 0.0) * math.log1p(count) for word, count in counts.items())


def _weights(features: Any, train: Sequence[Preference], seed: int) -> Floats:
    """Weights of the features of the training answers; all 0 if there are no pairs."""
    better, worse, target, weight, prompt = _pairs(train)
    if not len(better):
        return np.zeros(features.shape[1])
    gaps = features[better] - features[worse]
    fold = np.array(_folds(prompt, seed))

    def heldout_loss(penalty: float) -> float:
        total = 0.0
        for number in set(fold.tolist()):
            heldout = fold == number
            if heldout.all():
                continue
            z = gaps[heldout] @ fit_ridge(gaps[~heldout], target[~heldout], weight[~heldout], penalty)
            total += float(weight[heldout] @ (np.logaddexp(0, z) - target[heldout] * z))
        return total

    return fit_ridge(gaps, target, weight, min(PENALTIES, key=heldout_loss))


def _pairs(preferences: Sequence[Preference]) -> tuple[NDArray[Any], NDArray[Any], Floats, Floats, list[str]]:
    """Indices of both answers of every pair, P(first better), weights and prompts; a soft label is used as it is."""
    rows: list[tuple[int, int, float, float]] = []
    prompts: list[str] = []
    start = 0
    for p in preferences:
        count = len(p.completions)
        ranked_pairs = [(i, j) for i in range(count) for j in range(count) if p.ranks[i] < p.ranks[j]]
        pairs = [(0, 1, p.probability)] if p.probability is not None else [(i, j, 1.0) for i, j in ranked_pairs]
        for i, j, probability in pairs:
            rows.append((start + i, start + j, probability, p.weight / len(pairs)))
            prompts.append(p.prompt.id)
        start += count
    columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
    indices = [np.array(c, dtype=np.int64) for c in columns[:2]]
    return indices[0], indices[1], np.array(columns[2], dtype=float), np.array(columns[3], dtype=float), prompts


def fit_ridge(gaps: Any, target: Floats, weight: Floats, penalty: float) -> Floats:
    """argmin_v Σ w·[softplus(z) − p·z] + ½·λ·|v|² with z = gaps @ v.

    Args:
        gaps: ``[P, D]``, sparse or dense, features of the first answer minus those of the second.
        target: ``[P]``, p.
        weight: ``[P]``, w.
        penalty: λ.

    Returns:
        ``[D]``.
    """
    optimize: Any = import_module("scipy.optimize")
    special: Any = import_module("scipy.special")

    def loss(v: Floats) -> tuple[float, Floats]:
        z = gaps @ v
        value = weight @ (np.logaddexp(0, z) - target * z) + penalty / 2 * (v @ v)
        return float(value), gaps.T @ (weight * (special.expit(z) - target)) + penalty * v

    options = {"maxiter": 200, "ftol": 1e-9}
    return optimize.minimize(loss, np.zeros(gaps.shape[1]), jac=True, method="L-BFGS-B", options=options).x
