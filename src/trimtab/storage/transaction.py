"""One transaction on the label database: the connection, the time, and statements that all storage modules use."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from sqlalchemy import Connection, Row, Table, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from trimtab.config import parse_config
from trimtab.errors import DataError
from trimtab.storage.project import ProjectConfig
from trimtab.storage.rows import add_event, get_setting
from trimtab.storage.schema import items, people

# Statements of the hot path, here and in the other storage modules, are built once, because building them costs more
# than running them.
_ITEM = select(items).where(items.c.uid == bindparam("uid"))
_PERSON = select(people).where(people.c.id == bindparam("person"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Transaction:
    """An open transaction of a :class:`~trimtab.storage.labels.LabelStore`."""

    c: Connection
    """The connection."""
    now: float
    """Start of the transaction, in seconds since 1970."""
    salt: str
    """The project's secret; it seeds the orders of answers and the choice of check items."""

    @property
    def config(self) -> ProjectConfig:
        """The project's settings."""
        return read_config(self.c)

    def person(self, person: int) -> Row[Any]:
        """The row of a person who exists."""
        return self.c.execute(_PERSON, {"person": person}).one()

    def item(self, uid: str) -> Row[Any]:
        """The row of an item.

        Raises:
            DataError: there is no such item.
        """
        row = self.c.execute(_ITEM, {"uid": uid}).first() if "\x00" not in uid else None
        if row is None:
            raise DataError("there is no such item")
        return row

    def event(
        self, kind: str, body: Mapping[str, Any], *, person: int | None, item: int | None = None, key: str | None = None
    ) -> int:
        """Append an event and return its number."""
        return add_event(self.c, self.now, kind, body, person=person, item=item, key=key)

    def upsert(self, table: Table, keys: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Insert a row, or update the one with these keys."""
        statement = _upsert(table, tuple(keys), tuple(values), self.c.dialect.name)
        self.c.execute(statement, {**keys, **values})


def read_config(c: Connection) -> ProjectConfig:
    """The project's settings; the defaults in a new project."""
    return _parse_config(get_setting(c, "config") or "{}")


@lru_cache(maxsize=8)
def _parse_config(raw: str) -> ProjectConfig:
    return parse_config(ProjectConfig, json.loads(raw), where="project settings")


@cache
def _upsert(table: Table, keys: tuple[str, ...], values: tuple[str, ...], dialect: str) -> Any:
    statement = (sqlite.insert if dialect == "sqlite" else postgresql.insert)(table)
    return statement.on_conflict_do_update(
        index_elements=keys, set_={name: statement.excluded[name] for name in values}
    )
