"""Settings and guidelines of a project, which owners change. Every change is an event."""

from sqlalchemy import Connection, and_, bindparam, insert, select

from trimtab.records.types import content_id
from trimtab.storage.items import recount, set_overlap
from trimtab.storage.project import ProjectConfig
from trimtab.storage.rows import put_setting
from trimtab.storage.schema import guidelines, items
from trimtab.storage.transaction import Transaction

_NEWEST_GUIDELINE = select(guidelines.c.name).order_by(guidelines.c.version.desc()).limit(1)
_GUIDELINE_VERSION = select(guidelines.c.version).where(guidelines.c.name == bindparam("name"))


def put_config(tx: Transaction, config: ProjectConfig, *, person: int | None = None) -> None:
    """Change the settings.

    A new overlap applies to all items that were added without one, a new majority to all items that are not settled.
    """
    previous = tx.config
    put_setting(tx.c, "config", config.model_dump_json())
    tx.event("settings", config.model_dump(mode="json"), person=person)
    if config.overlap != previous.overlap:
        set_overlap(tx, and_(items.c.inherits.is_(True), items.c.role.is_(None)), config.overlap)
    if config.majority != previous.majority:
        judged_by_several = select(items).where(items.c.done > 1, items.c.role.is_(None))
        for item in tx.c.execute(judged_by_several).all():
            recount(tx, item)


def put_guideline(tx: Transaction, body: str, *, person: int | None = None) -> str:
    """Add a version of the guidelines and return its name, ``v2-1a2b3c4d``. An unchanged text adds nothing."""
    newest = tx.c.execute(select(guidelines).order_by(guidelines.c.version.desc()).limit(1)).first()
    if newest is not None and newest.body == body:
        return newest.name
    number = (newest.version if newest else 0) + 1
    name = f"v{number}-{content_id(body)[:8]}"
    tx.c.execute(insert(guidelines).values(version=number, name=name, body=body, created_at=tx.now))
    tx.event("guideline", {"name": name}, person=person)
    return name


def read_guideline(c: Connection, version: int | None) -> tuple[int, str, str] | None:
    """(number, name, text) of a version of the guidelines; None: the newest."""
    query = select(guidelines.c.version, guidelines.c.name, guidelines.c.body)
    if version is not None:
        query = query.where(guidelines.c.version == version)
    row = c.execute(query.order_by(guidelines.c.version.desc()).limit(1)).first()
    return (row.version, row.name, row.body) if row else None


def guideline_names(c: Connection) -> list[tuple[int, str]]:
    """(number, name) of every version of the guidelines, newest first."""
    query = select(guidelines.c.version, guidelines.c.name).order_by(guidelines.c.version.desc())
    return [(row.version, row.name) for row in c.execute(query)]


def newest_guideline(c: Connection) -> str | None:
    """Name of the newest version; None: there are no guidelines."""
    return c.scalar(_NEWEST_GUIDELINE)


def is_guideline(c: Connection, name: str) -> bool:
    """True if there is a version with this name."""
    return c.scalar(_GUIDELINE_VERSION, {"name": name}) is not None
