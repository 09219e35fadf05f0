"""TF-IDF of words and characters with logistic regression: the guard member that needs no language model."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

MAX_NGRAMS = 40_000
"""Maximum number of n-grams of each kind."""


def _vectorizers(words: Any = None, characters: Any = None) -> tuple[TfidfVectorizer, TfidfVectorizer]:
    shared: dict[str, Any] = {"lowercase": True, "sublinear_tf": True, "dtype": np.float32}
    return (
        TfidfVectorizer(ngram_range=(1, 2), vocabulary=words, max_features=None if words else MAX_NGRAMS, **shared),
        TfidfVectorizer(
            analyzer="char_wb", ngram_range=(2, 5), vocabulary=characters,
            max_features=None if characters else MAX_NGRAMS, **shared,
        ),
    )  # fmt: skip


class Lexical:
    """z(x) = w·(tfidf_words(x), tfidf_characters(x)) + b, with tf = 1 + log(count), rows of unit length per kind.

    Words: n-grams of 1 and 2. Characters: n-grams of 2 to 5 inside words. Made by :meth:`fit` or :meth:`restored`.
    """

    def __init__(self, words: TfidfVectorizer, characters: TfidfVectorizer, weights: np.ndarray, bias: float) -> None:
        self._words, self._characters = words, characters
        self.weights, self.bias = weights, bias

    @classmethod
    def fit(cls, texts: Sequence[str], labels: Sequence[int], *, strength: float = 10.0) -> Self:
        """Fit vocabulary, idf and weights.

        Args:
            texts: training texts, at least one of each label.
            labels: 1: restricted, 0: not.
            strength: inverse L2 penalty C; both labels get the same total weight.
        """
        words, characters = _vectorizers()
        features = sparse.hstack([words.fit_transform(texts), characters.fit_transform(texts)], format="csr")
        model: Any = LogisticRegression(C=strength, class_weight="balanced", solver="liblinear", random_state=0)
        model.fit(features, np.asarray(labels))
        return cls(words, characters, model.coef_[0].astype(np.float32), float(model.intercept_[0]))

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Log-odds of each text, ``[N]``, not calibrated."""
        return self.features(texts) @ self.weights + self.bias

    def features(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """TF-IDF, ``[N, words + characters]``."""
        parts: Any = [self._words.transform(texts), self._characters.transform(texts)]
        return sparse.csr_matrix(sparse.hstack(parts, format="csr"))

    def strongest(self, text: str, count: int = 10) -> list[tuple[str, float]]:
        """The words and word pairs of a text that move its log-odds most, and their contributions."""
        features: Any = self._words.transform([text])
        row = features.tocoo()
        names = self._words.get_feature_names_out()
        parts = [(str(names[j]), float(v * self.weights[j])) for j, v in zip(row.col, row.data, strict=True)]
        return sorted(parts, key=lambda part: -abs(part[1]))[:count]

    def vocabulary(self) -> dict[str, list[str]]:
        """n-grams of each kind in the order of the weights, for a JSON file."""
        return {
            "words": self._words.get_feature_names_out().tolist(),
            "characters": self._characters.get_feature_names_out().tolist(),
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """Weights and idf, for a file of tensors."""
        idf = np.concatenate([self._words.idf_, self._characters.idf_]).astype(np.float32)
        return {"weights": self.weights, "bias": np.array([self.bias], np.float32), "idf": idf}

    @classmethod
    def restored(cls, vocabulary: dict[str, list[str]], arrays: dict[str, np.ndarray]) -> Self:
        """Rebuild from :meth:`vocabulary` and :meth:`arrays`."""
        words, characters = _vectorizers(vocabulary["words"], vocabulary["characters"])
        count = len(vocabulary["words"])
        words.idf_, characters.idf_ = arrays["idf"][:count], arrays["idf"][count:]
        return cls(words, characters, arrays["weights"], float(arrays["bias"][0]))


class Rules:
    """Finds the rule that a restricted text resembles most, by one logistic regression per rule on a member's features.

    Args:
        lexical: the member that gives the features.
        names: ids of the rules.
        weights: ``[R, features]``.
        bias: ``[R]``.
    """

    def __init__(self, lexical: Lexical, names: Sequence[str], weights: np.ndarray, bias: np.ndarray) -> None:
        self.lexical, self.names, self.weights, self.bias = lexical, tuple(names), weights, bias

    @classmethod
    def fit(cls, lexical: Lexical, texts: Sequence[str], rules: Sequence[str]) -> Self:
        """Fit on restricted texts with their rules."""
        names = sorted(set(rules))
        features: Any = lexical.features(texts)
        weights, bias = np.zeros((len(names), features.shape[1]), np.float32), np.zeros(len(names), np.float32)
        for i, name in enumerate(names if len(names) > 1 else ()):
            model: Any = LogisticRegression(C=10.0, class_weight="balanced", solver="liblinear", random_state=0)
            model.fit(features, np.array([rule == name for rule in rules]))
            weights[i], bias[i] = model.coef_[0], model.intercept_[0]
        return cls(lexical, names, weights, bias)

    def nearest(self, text: str) -> str:
        """Id of the rule with the highest log-odds."""
        return self.names[int((self.lexical.features([text]) @ self.weights.T + self.bias)[0].argmax())]
