"""Reads RewardBench 2 files as they are, and scores them as RewardBench 2 does.

Rows: ``id, prompt, chosen[], rejected[], num_correct, total_completions, subset``. A prompt counts if the first right
answer has the highest score; if n answers share that score, it counts 1/n. The subset *Ties* has several right
answers and is scored separately. Source: Malik et al. 2025, "RewardBench 2" (arXiv 2506.01937), section 3, and the
scoring functions of the allenai/reward-bench repository; the weights of :func:`ties_score` are theirs.
"""

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from trimtab.errors import DataError, ScoringError
from trimtab.feedback.intervals import Estimate, clustered_share
from trimtab.records import Completion, Preference, Prompt

COLUMNS = "id, prompt, chosen, rejected, subset"
"""Columns of a RewardBench 2 file."""

TIES = "Ties"
"""Name of the subset with several right answers."""


def is_reward_bench(path: Path) -> bool:
    """True: the first row has RewardBench 2's columns."""
    row = next(iter(_rows(path)), None)
    return isinstance(row, Mapping) and {"id", "prompt", "chosen", "rejected", "subset"} <= row.keys()


def read_reward_bench(path: Path) -> list[Preference]:
    """The file's prompts as preferences: right answers have rank 0, wrong ones rank 1.

    ``metadata`` contains ``subset`` and the row's ``id``; answers keep the file's order, right answers first.

    Raises:
        DataError: a row lacks a column; the message has its number.
    """
    records: list[Preference] = []
    for number, row in enumerate(_rows(path), start=1):
        try:
            right, wrong = list(row["chosen"]), list(row["rejected"])
            prompt, uid, subset = str(row["prompt"]), str(row["id"]), str(row["subset"])
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}, row {number}: {error!r}; expected the columns {COLUMNS}") from error
        if not right or not wrong or not all(isinstance(a, str) for a in (*right, *wrong)):
            raise DataError(f"{path}, row {number} ({uid}): expected lists of texts under chosen and rejected")
        records.append(
            Preference(
                id=f"{subset}/{uid}",
                prompt=Prompt.from_text(prompt),
                completions=tuple(Completion(text=a) for a in (*right, *wrong)),
                ranks=(0,) * len(right) + (1,) * len(wrong),
                metadata={"subset": subset, "id": uid},
            )
        )
    if not records:
        raise DataError(f"{path}: no rows; expected the columns {COLUMNS}")
    return records


def _rows(path: Path) -> list[Any]:
    open_file = gzip.open if path.suffix == ".gz" else open
    try:
        with open_file(path, "rt", encoding="utf-8") as file:
            text = file.read()
        return json.loads(text) if text.lstrip().startswith("[") else [json.loads(r) for r in text.splitlines() if r]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}; expected JSON lines or a JSON list") from error


def reward_bench_scores(preferences: Sequence[Preference], scores: Sequence[Sequence[float]]) -> dict[str, Estimate]:
    """Score of each subset, and ``average`` over subsets.

    Args:
        preferences: from :func:`read_reward_bench`.
        scores: of all answers, finite.

    Raises:
        ScoringError: a subset *Ties* without both its parts.
    """
    outcomes: dict[str, list[tuple[float, str]]] = {}
    ties: list[tuple[str, int, Sequence[float]]] = []
    for p, row in zip(preferences, scores, strict=True):
        subset = str(p.metadata["subset"])
        if subset == TIES:
            ties.append((str(p.metadata["id"]), p.ranks.count(0), row))
            continue
        best = max(row)
        outcome = float(row[0] == best) / sum(s == best for s in row)
        outcomes.setdefault(subset, []).append((outcome, p.prompt.id))
    result = {name: clustered_share(rows) for name, rows in outcomes.items()}
    if ties:
        result[TIES] = Estimate(value=ties_score(ties), n=len(ties), reason="a weighted sum, without an interval")
    values = [e.value for e in result.values() if e.value is not None]
    result["average"] = Estimate(value=fmean(values), n=len(preferences), reason=f"mean of {len(values)} subsets")
    return result


def ties_score(rows: Sequence[tuple[str, int, Sequence[float]]]) -> float:
    """Score of the subset *Ties*.

    Each prompt occurs with one right answer (``ref:N``) and with several (``tied:N``). A prompt is accurate if its
    worst right answer beats its best wrong answer. The gap of a prompt is the difference of these two scores; the
    spread of a tied prompt is the range of the scores of its right answers. The score is

        .3 · accuracy of tied + .3 · accuracy of ref + .2 · P(gap > spread) + .2 · P(min(gap, ref's gap) > spread)
        + .01 · mean tanh(min(gap, ref's gap) / spread − 1)

    where gap and spread are the tied prompt's. The last three terms are over prompts with both parts, and 0 / 0 is 0.

    Args:
        rows: id, number of right answers (they come first), scores.

    Raises:
        ScoringError: an id of another form, or no prompt with both parts.
    """
    gaps: dict[str, dict[str, tuple[float, float]]] = {"ref": {}, "tied": {}}
    for uid, right_count, scores in rows:
        kind, _, number = uid.partition(":")
        if kind not in gaps or not number:
            raise ScoringError(f"id {uid!r} of the subset Ties; expected ref:N or tied:N")
        right_scores, wrong_scores = scores[:right_count], scores[right_count:]
        gaps[kind][number] = (min(right_scores) - max(wrong_scores), max(right_scores) - min(right_scores))
    numbers = sorted(gaps["ref"].keys() & gaps["tied"].keys())
    if not numbers:
        raise ScoringError(
            f"none of {len(rows)} rows of the subset Ties has both ref:N and tied:N; read the whole file"
        )
    accuracy = {kind: fmean(float(gap > 0) for gap, _ in values.values()) for kind, values in gaps.items()}
    tied_gaps = [gaps["tied"][n] for n in numbers]
    smaller_gaps = [(min(gap, gaps["ref"][n][0]), spread) for n, (gap, spread) in zip(numbers, tied_gaps, strict=True)]
    own_gap_share, smaller_gap_share = (
        fmean(float(gap > spread) for gap, spread in gap_rows) for gap_rows in (tied_gaps, smaller_gaps)
    )
    bonus = fmean(math.tanh(_ratio(gap, spread) - 1) for gap, spread in smaller_gaps)
    return 0.3 * accuracy["tied"] + 0.3 * accuracy["ref"] + 0.2 * own_gap_share + 0.2 * smaller_gap_share + 0.01 * bonus


def _ratio(gap: float, spread: float) -> float:
    if spread:
        return gap / spread
    return math.copysign(math.inf, gap) if gap else 0.0
