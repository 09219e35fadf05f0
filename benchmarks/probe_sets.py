"""Our own answers for every probe: at least 50 that have what it looks for and 50 that do not.

Sentences of ``probe_sets.yaml`` are put at the beginning or the end of plain answers. What shows in the form of an
answer (copies, repetition, markup, text that is none) is made from the same plain answers by rule. Sycophancy depends
on the prompt, so ``sycophancy_set.yaml`` has whole pairs.
"""

from collections.abc import Iterator
from pathlib import Path

import yaml

SENTENCES = Path(__file__).with_name("probe_sets.yaml")
SYCOPHANCY = Path(__file__).with_name("sycophancy_set.yaml")

PLAIN: tuple[tuple[str, str], ...] = (
    ("How do I boil an egg?", "Put it into boiling water for eight minutes, then into cold water."),
    ("Why is the sea salty?", "Rivers carry salts from the rocks into it, and only the water leaves again."),
    ("What is a glacier?", "A mass of ice that forms from snow and flows slowly downhill."),
    ("How do bees find flowers?", "By scent and colour, and other bees tell them where to fly."),
    ("Which wood is good for a table?", "Oak and ash are hard and last long; pine is cheaper and softer."),
    ("What does a conductor do?", "He sets the tempo and shows the players when to begin."),
    ("How is paper made?", "Fibres of wood are mixed with water, spread on a sieve, pressed and dried."),
    ("Why do leaves turn red?", "The tree takes back the green pigment, and other colours become visible."),
    ("What is a leap year?", "A year with 366 days, which keeps the calendar in step with the sun."),
    ("How do I clean a window?", "Use warm water with a little soap, and a rubber blade."),
    ("What is yeast?", "A fungus that turns sugar into gas and alcohol."),
    ("Why do cats purr?", "Often because they are content, sometimes to calm themselves."),
    ("How does a lock in a canal work?", "Water is let in or out until both sides stand at the same height."),
    ("What is a sonnet?", "A poem of fourteen lines with a fixed pattern of rhymes."),
    ("How long does a letter take?", "Two days within the country, about a week abroad."),
    ("What is the tide?", "The rise and fall of the sea, caused by the moon and the sun."),
    ("How do I store onions?", "Dry and dark, with some air, and away from potatoes."),
    ("Why does iron rust?", "It combines with oxygen where water is present."),
    ("What is a haiku?", "A short poem from Japan, often about a season."),
    ("How do planes stay in the air?", "The wings push air down, and the air pushes the wings up."),
    ("What is sourdough?", "Dough that is raised by wild yeast and bacteria instead of bought yeast."),
    ("Why are there time zones?", "So that noon is near the middle of the day everywhere."),
    ("What does a notary do?", "He checks who signs a contract and keeps a copy of it."),
    ("How do I repot a plant?", "Take a pot two fingers wider, shake off old soil and fill in new."),
    ("What is a fjord?", "A long, deep arm of the sea between steep slopes, cut by ice."),
)
"""Prompts with plain answers."""

Case = tuple[str, str]
"""Prompt and answer."""


def probe_sets() -> dict[str, tuple[list[Case], list[Case]]]:
    """Positive and negative cases by probe."""
    sentences = yaml.safe_load(SENTENCES.read_text(encoding="utf-8"))
    sets = {
        name: (list(_with(lists["positive"])), [*_with(lists["negative"]), *PLAIN])
        for name, lists in sentences.items()
        if name != "language"
    }
    foreign = sentences["language"]
    sets["language"] = (
        [(LONG[i % len(LONG)], text) for i, text in enumerate(foreign["positive"])],
        [*((LONG[i % len(LONG)], f"{text} {PLAIN[i][1]}") for i, text in enumerate(foreign["negative"])), *PLAIN],
    )
    agreed = sycophancy_set()
    sets["sycophancy"] = (agreed["positive"], agreed["negative"])
    forms = {"copying": _copying, "repetition": _repetition, "markup": _markup, "degenerate": _degenerate}
    for name, cases in forms.items():
        made = list(cases())
        sets[name] = ([case for case, yes in made if yes], [case for case, yes in made if not yes])
    return sets


def sycophancy_set() -> dict[str, list[Case]]:
    """Pairs in which the answer gives way, does not, and agrees with a user who is right."""
    lists = yaml.safe_load(SYCOPHANCY.read_text(encoding="utf-8"))
    return {name: [(prompt, answer) for prompt, answer in pairs] for name, pairs in lists.items()}


LONG = tuple(f"{question} Please say it in one or two sentences that a child can follow." for question, _ in PLAIN)


def _with(sentences: list[str]) -> Iterator[Case]:
    """A sentence before or after a plain answer."""
    for i, sentence in enumerate(sentences):
        prompt, answer = PLAIN[i % len(PLAIN)]
        yield prompt, f"{sentence} {answer}" if i % 2 else f"{answer} {sentence}"


def _copying() -> Iterator[tuple[Case, bool]]:
    for i, (question, answer) in enumerate(PLAIN):
        prompt = f"{question} I read this: {answer}"
        other = PLAIN[(i + 7) % len(PLAIN)][1]
        first, *rest = answer.split()
        yield (prompt, (answer, prompt.lower(), answer.replace(",", ""), f"{prompt} Thank you!", question)[i % 5]), True
        yield (prompt, (f"You wrote: {prompt}", f"{answer} So it is.", f"Well, {prompt}")[i % 3]), True
        yield (prompt, other), False
        yield (
            (
                prompt,
                (f"“{first} {' '.join(rest[:2])}” is well put, and {other.lower()}", f"About that: {other}")[i % 2],
            ),
            False,
        )


def _repetition() -> Iterator[tuple[Case, bool]]:
    for i, (prompt, answer) in enumerate(PLAIN):
        head = " ".join(answer.split()[:6])
        yield (prompt, f"{answer} " * (2 + i % 3)), True
        yield (prompt, f"{answer} {head} and {head} and {head} again."), True
        yield (prompt, answer), False
        other, third = PLAIN[(i + 3) % len(PLAIN)][1], PLAIN[(i + 11) % len(PLAIN)][1]
        yield (prompt, f"First, {answer.lower()} Second, {other.lower()} Third, {third.lower()}"), False


def _markup() -> Iterator[tuple[Case, bool]]:
    for i, (prompt, answer) in enumerate(PLAIN):
        parts = [part.strip() for part in answer.replace(";", ",").rstrip(".").split(",")]
        other = PLAIN[(i + 3) % len(PLAIN)][1]
        marks = ("- ", "* ", "1. ", "• ", "## ")
        yield (prompt, "\n".join(f"{marks[i % 5]}{part}" for part in [*parts, other])), True
        yield (prompt, f"**Answer:** {answer}" if i % 2 else f"# In short\n\n{answer}"), True
        yield (prompt, answer), False
        plain = (f"In 2 * 3 steps - no more - {answer.lower()}", f"{answer}\n{other}", f"On 3. May: {answer}")
        yield (prompt, plain[i % 3]), False


def _degenerate() -> Iterator[tuple[Case, bool]]:
    noise = (
        "",
        "   \n",
        "!!!!!!!!!!!!!!!!",
        "?! ## %% ++ -- == && !! ~~ ^^",
        "------------------",
        "aaaaaaaaaaaaaaaaaaaa",
    )
    fine = (
        "Yes.",
        "42",
        "No, no, no!",
        "x = (a + b) / 2",
        "ha ha ha",
        "3.14159",
        "It was very, very, very late.",
        "A, B or C?",
    )
    for i, (prompt, answer) in enumerate(PLAIN):
        word = answer.split()[0].lower()
        yield (prompt, noise[i % len(noise)]), True
        yield (
            (prompt, (f"{word} " * 12, f"{answer} {f'{word} ' * 9}", f"{answer} {'. , ' * 60}", "the of " * 20)[i % 4]),
            True,
        )
        yield (prompt, answer), False
        yield (prompt, fine[i % len(fine)]), False
