"""The training half of `trimtab tune`: a separate process that makes a round from the newest choices.

``python -m trimtab.pipeline.tuning RUN PROJECT`` makes or finishes a round as `trimtab round` does, without its
evaluation, and then predicts its choices with earlier models. It ends when its standard input does, so it never
outlives the page; all finished work stays.
"""

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from trimtab.pipeline.rounds import next_round, open_run, unfinished_round
from trimtab.pipeline.tune_learning import first_round, predict_choices, predictions, tuned_rounds
from trimtab.pipeline.ui import Ui
from trimtab.pipeline.votes import of_snapshot, opinion, used_before
from trimtab.records import Judgement
from trimtab.storage import RunFolder
from trimtab.storage.labels import LabelStore
from trimtab.storage.snapshot import take_snapshot

SETTINGS = ("evaluate=null", "balance=null", "label.votes.per_person=1000000")
"""Settings of the rounds: the page itself shows what was learned while the person waits, and only one person
chooses."""


def new_choices(run: RunFolder, store: LabelStore) -> int:
    """Number of comparisons with a winner that no round has used yet."""
    used = used_before(run.rounds())
    judgements = of_snapshot(take_snapshot(store)).judgements
    return sum(opinion(j) not in used and has_winner(j) for j in judgements)


def has_winner(judgement: Judgement) -> bool:
    """Whether a judgement prefers an answer; ties do not show which answers to give."""
    return judgement.ranks is not None and len(set(judgement.ranks)) > 1


def work_left(run: RunFolder) -> bool:
    """Whether a round was begun but not finished, or finished without predictions of its choices."""
    return unfinished_round(run) is not None or any(predictions(round) is None for round in tuned_rounds(run))


def train(path: Path, project: Path, *, overrides: Sequence[str] = (), ui: Ui | None = None) -> RunFolder:
    """Finish what was begun, or make the next round; returns the newest round.

    Raises:
        ConfigError, DataError, StorageError: as for :func:`~trimtab.pipeline.rounds.next_round`.
    """
    run = open_run(path)
    first_round(run)  # stored before the first round that tunes
    if not work_left(run) or unfinished_round(run) is not None:
        next_round(path, project, overrides=(*SETTINGS, *overrides), ui=ui)
    for round in tuned_rounds(run):
        if predictions(round) is None:
            predict_choices(run, round.number)
    return run.newest()


def _end_with_input() -> None:
    while os.read(0, 64):  # not sys.stdin, whose lock a thread must not hold when the interpreter ends
        pass
    os._exit(1)


def main(arguments: Sequence[str]) -> int:
    """Run :func:`train`; the last line of standard error is the reason for a failure."""
    from trimtab.errors import TrimtabError

    path, project, *overrides = arguments
    threading.Thread(target=_end_with_input, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(10)  # the page has priority
    try:
        train(Path(path), Path(project), overrides=overrides)
    except TrimtabError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
