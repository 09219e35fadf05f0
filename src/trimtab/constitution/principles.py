"""Principles in a YAML file: checked, drawn by weight, and versioned by what they say.

::

    name: ours
    principles:
      - id: honest-about-uncertainty
        text: The answer says how sure it is.                # what a judge compares by
        critique: Point out what is claimed without grounds. # asked of the model about its own answer
        revision: Rewrite the answer so that ...             # asked after the critique
        twin: Plain facts stated plainly are fine.           # what looks like a violation and is none
        weight: 1.0
        tags: [honest]

A list ``guard`` may follow: what a guard restricts, see :mod:`trimtab.constitution.guarding`.

The version of a principle is the hash of its fields, that of a constitution the hash of its
principles whatever their order. Comments, layout and the name of the file do not change it.
"""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from trimtab.config import Config, load_yaml, parse_config
from trimtab.constitution.filled import Filled
from trimtab.constitution.guarding import GuardRule
from trimtab.errors import ConfigError
from trimtab.files import sha256_json
from trimtab.records import content_id

DEFAULT = "default"
"""Name of the constitution that ships with trimtab."""

_SHIPPED = Path(__file__).with_name("default.yaml")


class Principle(Config):
    """One requirement on answers."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Short name in lower case; every label made with it names it."""
    text: Filled
    """What a better answer does; the question to a judge is which answer follows it better."""
    critique: Filled
    """Request to the model to criticise its own answer by this principle."""
    revision: Filled
    """Request to rewrite the answer after that critique."""
    twin: Filled
    """The harmless twin: what looks like a violation at a glance and is none. For guards and over-refusal tests."""
    weight: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    """How often it is drawn, and how much it counts where several are asked, relative to the others."""
    tags: tuple[str, ...] = Field(min_length=1)
    """Objectives it belongs to (helpful, harmless, honest …)."""

    @property
    def version(self) -> str:
        """Hash of its fields, 12 hexadecimal digits."""
        return sha256_json(self.model_dump(mode="json") | {"tags": sorted(self.tags)})[:12]


class Constitution(Config):
    """A set of principles."""

    name: str = Field(min_length=1)
    """What it is called; not part of its version."""
    principles: tuple[Principle, ...]
    """At least one, ids unique."""
    guard: tuple[GuardRule, ...] = ()
    """What a guard restricts (:mod:`trimtab.constitution.guarding`); ids unique. Not part of the version, which is
    about what judges read."""

    @model_validator(mode="after")
    def _unique(self) -> "Constitution":
        twice = [name for name, count in Counter(p.id for p in self.principles).items() if count > 1]
        if not self.principles:
            raise ValueError("there is no principle; a constitution needs at least one")
        if twice:
            raise ValueError(f"the id {twice[0]!r} occurs more than once; give each principle an id of its own")
        again = [name for name, count in Counter(r.id for r in self.guard).items() if count > 1]
        if again:
            raise ValueError(f"the guard rule {again[0]!r} occurs more than once; give each rule an id of its own")
        if any("overall" in (p.id, *p.tags) for p in self.principles):
            raise ValueError("'overall' is reserved for all principles together; give that principle or tag a name")
        return self

    @property
    def version(self) -> str:
        """Hash of all principles, 12 hexadecimal digits; their order does not matter."""
        return sha256_json(sorted(f"{p.id} {p.version}" for p in self.principles))[:12]

    @property
    def guard_version(self) -> str:
        """Hash of the guard's rules, 12 hexadecimal digits; their order does not matter."""
        return sha256_json(sorted(f"{r.id} {r.version}" for r in self.guard))[:12]

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags, most common first."""
        return tuple(tag for tag, _ in Counter(t for p in self.principles for t in p.tags).most_common())

    def __getitem__(self, name: str) -> Principle:
        """The principle with an id."""
        for principle in self.principles:
            if principle.id == name:
                return principle
        raise ConfigError(
            f"{name!r} is no principle of {self.name!r}; it has {', '.join(p.id for p in self.principles)}"
        )

    def tagged(self, tag: str) -> tuple[Principle, ...]:
        """The principles with a tag.

        Raises:
            ConfigError: there is none.
        """
        principles = tuple(p for p in self.principles if tag in p.tags)
        if not principles:
            raise ConfigError(f"no principle of {self.name!r} has the tag {tag!r}; tags there: {', '.join(self.tags)}")
        return principles

    def without(self, name: str) -> "Constitution":
        """The same without one principle."""
        principles = tuple(p for p in self.principles if p.id != self[name].id)
        if not principles:
            raise ConfigError(f"{name!r} is the only principle of {self.name!r}; a constitution needs one")
        return self.model_copy(update={"principles": principles})

    def draw(self, count: int | None, *seed: Any) -> tuple[Principle, ...]:
        """Different principles by weight, the same for equal seeds whatever their order in the file.

        Each principle gets the key u^(1/w) with a uniform number u of its own, and the largest keys win:
        Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006. So removing a principle that
        was not drawn, or adding one whose key is small, leaves the draw as it was.

        Args:
            count: how many; None: all, in the order of their ids.
            seed: anything; for an item, its id.
        """
        if count is None:
            return tuple(sorted(self.principles, key=lambda p: p.id))

        def rank(principle: Principle) -> float:
            uniform = random.Random(content_id("principle", *seed, principle.id)).random()
            return uniform ** (1 / principle.weight)

        return tuple(sorted(self.principles, key=rank, reverse=True)[:count])


def load_constitution(source: str | Path) -> Constitution:
    """Read a constitution; ``default`` is the one that ships.

    Raises:
        ConfigError: unreadable, not YAML, empty, unknown keys, unfilled fields, ids that stand twice.
    """
    path = _SHIPPED if source == DEFAULT else Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(
            f"{source}: cannot be read ({reason}); give a YAML file, or 'default' for the constitution that ships"
        ) from None
    return parse_constitution(text, where=str(source))


def parse_constitution(text: str, *, where: str) -> Constitution:
    """Build a constitution from YAML text; errors as in :func:`load_constitution`."""
    try:
        values = load_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}") from None
    if not isinstance(values, Mapping) or not values.get("principles"):
        raise ConfigError(
            f"{where}: the constitution is empty; it needs a name and a list 'principles' with at least one entry "
            "(`trimtab constitution show` prints the one that ships)"
        )
    return parse_config(Constitution, values, where=where)


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What became of one principle or guard rule between two constitutions."""

    id: str
    """Which principle; ``guard/ID`` for a guard's rule."""
    kind: str
    """``added``, ``removed`` or ``edited``."""
    fields: tuple[tuple[str, Any, Any], ...] = ()
    """For an edit: field, before, after."""


def compare(before: Constitution, after: Constitution) -> list[Change]:
    """All changes, by id; an edited field that only changed its layout is no change."""
    old, new = ({p.id: p for p in c.principles} | {f"guard/{r.id}": r for r in c.guard} for c in (before, after))
    changes = []
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            changes.append(Change(id=name, kind="removed"))
        elif name not in old:
            changes.append(Change(id=name, kind="added"))
        elif old[name].version != new[name].version:
            a, b = old[name].model_dump(), new[name].model_dump()
            changes.append(Change(id=name, kind="edited", fields=tuple((k, a[k], b[k]) for k in a if a[k] != b[k])))
    return changes
