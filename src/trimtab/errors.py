"""Every exception trimtab raises on purpose, and the exit code each one gives the command line.

::

    TrimtabError                 1   anything below; catch this one
    ├── ConfigError              2   a recipe, a flag or two settings that contradict each other
    ├── DataError                3   a data file: unreadable, unknown format, nothing usable in it
    │   └── TooLongError         3   a conversation does not fit the model's context
    ├── ModelError               4   a model folder: missing, no tokenizer, no chat template, wrong shape
    ├── TrainingError            5   training cannot continue
    │   ├── NonFiniteError       5   a loss, gradient or reward became NaN or infinite
    │   └── CollapseError        5   alignment fell apart; names the last good checkpoint
    ├── CheckpointError          6   a checkpoint is damaged or belongs to another configuration
    ├── ScoringError             7   a reward function raised, or returned the wrong shape or type
    ├── StorageError             8   the disk is full, read-only or a path cannot be written
    │   └── ConflictError        8   another person was first, or the version is not the newest
    ├── JudgeError               9   an AI judge cannot continue: endpoint, cost cap, another model than before
    ├── RankError               10   one of several processes is missing, has stopped or does something else
    ├── EngineError             11   an engine that draws answers failed, or holds other weights than it was given
    └── Interrupted            130   Ctrl-C: the state is saved and the same command continues

A message names the value, what was expected and the next step. ``assert`` in this code base
marks our own bugs only, never a user's mistake.
"""


def install_hint(extra: str) -> str:
    """The command that installs an extra, for messages about a missing package.

    >>> install_hint("web")
    "run in trimtab's folder: pip install -c constraints.txt -e '.[web]'"
    """
    return f"run in trimtab's folder: pip install -c constraints.txt -e '.[{extra}]'"


class TrimtabError(Exception):
    """Base of every error a user can cause; its text is complete without a traceback."""

    exit_code = 1


class ConfigError(TrimtabError):
    """A recipe or a flag is wrong."""

    exit_code = 2


class DataError(TrimtabError):
    """A data file cannot be used."""

    exit_code = 3


class TooLongError(DataError):
    """A conversation does not fit the model's context."""


class ModelError(TrimtabError):
    """A model or tokenizer cannot be used."""

    exit_code = 4


class TrainingError(TrimtabError):
    """Training cannot continue."""

    exit_code = 5


class NonFiniteError(TrainingError):
    """A loss, gradient or reward became NaN or infinite."""


class CollapseError(TrainingError):
    """Alignment fell apart: answers that no longer end, a reward far below the start's, or a KL beyond all measure."""


class CheckpointError(TrimtabError):
    """A checkpoint is damaged or was made under another configuration."""

    exit_code = 6


class ScoringError(TrimtabError):
    """A reward function failed or returned something unusable."""

    exit_code = 7


class StorageError(TrimtabError):
    """The file system refused: full, read-only or missing permission."""

    exit_code = 8


class ConflictError(StorageError):
    """A label cannot be stored: the slot was given to another annotator, or the version is not the newest."""


class JudgeError(TrimtabError):
    """An AI judge cannot continue; every answer it gave so far is kept."""

    exit_code = 9


class RankError(TrimtabError):
    """A process of several that train together is missing, has stopped, or is in another phase."""

    exit_code = 10


class EngineError(TrimtabError):
    """An engine that draws answers failed, or does not compute with the weights that it was given."""

    exit_code = 11


class Interrupted(TrimtabError):
    """The user stopped the run; it can be continued with the same command."""

    exit_code = 130
