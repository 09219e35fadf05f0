"""Preferences to measure with: made-up sentences of known length, or the pairs of a file.

The other trainers' data come from the same pairs: a dialogue is the prompt with its better answer,
a prompt is a pair without its answers.
"""

import random
from collections.abc import Iterator
from itertools import islice

from benchmarks.workloads import SEED, Workload
from trimtab.errors import DataError
from trimtab.models import Chat
from trimtab.records import Preference, Prompt, load
from trimtab.trainers import encode_preferences

_NAMES = "baker captain child doctor farmer gardener librarian neighbour painter pilot sailor teacher".split()
_THINGS = "boat bridge garden harbour kite ladder lantern map oven rudder sail window".split()
_VERBS = "borrows cleans draws finds measures mends opens paints sells shows turns watches".split()
_MANNERS = "before breakfast, after the rain, on the old pier, with great care, once a week, for a friend".split(", ")


def preferences(chat: Chat, workload: Workload, data: str | None) -> list[Preference]:
    """As many pairs as the workload's batch has, the same ones every time.

    Each fits the workload's context, and so does its prompt with ``new_tokens`` more.

    Args:
        chat: renders and counts the tokens; its context is the workload's.
        workload: how many, and how long.
        data: a preference file; None: made-up sentences.

    Raises:
        DataError: the file cannot be read, or too few pairs fit.
    """
    if data is None:
        rows = _made_up(chat, workload)
    else:
        usable = list(load(data, kind=Preference).records)
        rows = iter(random.Random(SEED).sample(usable, len(usable)))
    result = list(islice((row for row in rows if _fits(row, chat, workload)), workload.batch))
    if len(result) < workload.batch:
        raise DataError(
            f"{data or 'made-up sentences'}: only {len(result)} pairs fit {workload.context} tokens but "
            f"{workload.name!r} needs {workload.batch}; give a file with more short pairs, or leave --data out"
        )
    return result


def _fits(row: Preference, chat: Chat, workload: Workload) -> bool:
    is_pair = len(row.completions) == 2 and row.ranks[0] != row.ranks[1]
    if not is_pair or not encode_preferences(chat, [row])[1]:
        return False
    return len(chat.prompt(row.prompt.messages)) + workload.new_tokens <= workload.context


def _made_up(chat: Chat, workload: Workload) -> Iterator[Preference]:
    rng = random.Random(SEED)
    for _ in range(20 * workload.batch):  # far more than needed where the tokenizer knows English
        questions = " ".join([*(_sentence(rng) for _ in range(rng.randint(0, 2))), f"Why is it that the {_fact(rng)}?"])
        prompt = Prompt.from_text(questions)
        longest = [rng.randint(workload.context // 4, workload.context) for _ in range(2)]
        try:
            yield Preference.pair(prompt, *(_answer(rng, chat, prompt, limit) for limit in longest))
        except DataError:  # the prompt alone is too long
            continue


def _answer(rng: random.Random, chat: Chat, prompt: Prompt, limit: int) -> str:
    """Sentences until prompt and answer have nearly ``limit`` tokens; one at least."""
    room = limit - len(chat.prompt(prompt.messages))
    text = _sentence(rng)
    while len(chat.answer_tokens(prompt.messages, longer := f"{text} {_sentence(rng)}")) <= room:
        text = longer
    return text


def _sentence(rng: random.Random) -> str:
    return f"The {_fact(rng)} {rng.choice(_MANNERS)}."


def _fact(rng: random.Random) -> str:
    return f"{rng.choice(_NAMES)} {rng.choice(_VERBS)} the {rng.choice(_THINGS)}"
