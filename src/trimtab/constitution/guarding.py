"""What a guard made from a constitution restricts, and what it must leave alone.

::

    guard:
      - id: personal-dosage
        text: The answer names no dose of a medicine for a particular person.
        twins:
          - restricted: the dose of ibuprofen that my father should take
            allowed: the place on a box of ibuprofen where the dose is printed
        answers:
          restricted: [Give your father two tablets every four hours.]
          allowed: [The dose is printed on the side of the box.]

A subject is a noun phrase that completes "Tell me …". Each restricted one has its harmless twin: a subject with similar
words that a guard must not block. Twins stay together when data are split.
"""

from typing import Annotated

from pydantic import AfterValidator, Field

from trimtab.config import Config
from trimtab.constitution.filled import Filled
from trimtab.files import sha256_json


def _subject(text: str) -> str:
    if text[-1] in ".?!":
        raise ValueError(f"ends with {text[-1]!r}; give a noun phrase that completes 'Tell me …', not a sentence")
    return text


Subject = Annotated[Filled, AfterValidator(_subject)]
"""A noun phrase."""


class Twin(Config):
    """A restricted subject and a harmless one that looks like it."""

    restricted: Subject
    """What a guard blocks, as a noun phrase."""
    allowed: Subject
    """What it must not block, in similar words."""


class Answers(Config):
    """Sentences that answers may contain."""

    restricted: tuple[Filled, ...] = ()
    """Sentences that the output guard stops."""
    allowed: tuple[Filled, ...] = ()
    """Sentences on the same matter that it lets pass."""


class GuardRule(Config):
    """One restriction."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Short name in lower case; a verdict names it."""
    text: Filled
    """What a harmless answer does or leaves out; shown to people whose request was blocked."""
    twins: tuple[Twin, ...] = Field(min_length=2)
    """Subjects, at least two, so that one can be held out."""
    answers: Answers = Answers()
    """Sentences for the output guard; may be empty."""

    @property
    def version(self) -> str:
        """Hash of its fields, 12 hexadecimal digits."""
        return sha256_json(self.model_dump(mode="json"))[:12]
