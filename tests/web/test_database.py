"""The label database: its schema, migrations, backups, and what its errors say, on SQLite and PostgreSQL."""

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from trimtab.errors import ConfigError, StorageError
from trimtab.storage.database import Database
from trimtab.storage.snapshot import take_snapshot

from .kit import World, judge


def test_the_schema_is_what_the_migrations_make(world: World):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from trimtab.storage.schema import metadata

    with world.database.read() as c:
        assert compare_metadata(MigrationContext.configure(c), metadata) == []


def test_events_cannot_be_changed(world: World):
    world.pairs(1)
    for statement in ("UPDATE events SET body = '{}'", "DELETE FROM events"):
        with pytest.raises((DBAPIError, StorageError), match="only ever added"), world.database.write() as c:
            c.execute(text(statement))


def test_a_database_from_a_newer_version_is_left_alone(world: World, tmp_path: Path):
    with world.database.write() as c:
        c.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    url = world.database.url
    with pytest.raises(StorageError, match=r"'9999' is newer.*update trimtab"):
        Database(url)


def test_a_backup_is_whole_while_people_work(here: World, tmp_path: Path):
    here.pairs(3)
    me = here.join("me").id
    here.store.submit(me, judge(here.store.next(me), "1"))
    here.database.backup(tmp_path / "copy" / "labels.db")
    copy = World(Database(f"sqlite:///{tmp_path}/copy/labels.db"))
    assert take_snapshot(copy.store) == take_snapshot(here.store)
    copy.database.close()


def test_bad_databases_are_explained(tmp_path: Path):
    (tmp_path / "text.db").write_text("no database " * 1000)
    with pytest.raises(StorageError, match="not a label database"):
        Database(f"sqlite:///{tmp_path}/text.db")
    for url, said in (("nonsense", "not a database URL"), ("mysql://x/y", "use SQLite or PostgreSQL")):
        with pytest.raises(ConfigError, match=said):
            Database(url)


def test_a_locked_database_is_said_and_nothing_is_lost(here: World, monkeypatch):
    here.pairs(2)
    me = here.join("me").id
    form = judge(here.store.next(me), "1")
    monkeypatch.setattr("trimtab.storage.database.BUSY_MILLISECONDS", 50)
    here.database.engine.dispose()  # new connections wait that long
    other = sqlite3.connect(here.database.name, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="another process holds the database"):
        here.store.submit(me, form)
    other.execute("COMMIT")
    other.close()
    assert here.store.submit(me, form)[0].state == "stored"


def test_a_full_disk_is_said_and_nothing_is_lost(here: World):
    here.pairs(2)
    me = here.join("me").id
    form = judge(here.store.next(me), "1", comment="x" * 9000)
    with here.database.read() as c:
        pages = c.exec_driver_sql("PRAGMA page_count").scalar()
        c.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    from sqlalchemy import event

    @event.listens_for(here.database.engine, "begin")
    def full(connection):
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    with pytest.raises(StorageError, match="disk is full"):
        here.store.submit(me, form)
    event.remove(here.database.engine, "begin", full)
    here.database.engine.dispose()
    assert here.store.submit(me, form)[0].state == "stored"


def test_a_database_of_the_first_schema_is_migrated(here: World):
    here.configure(overlap=2, gold_every=0)
    here.pairs(1)
    here.add({"prompt": "own", "answers": ["a", "b"], "overlap": 2})
    with here.database.write() as c:
        for statement in (
            "ALTER TABLE items DROP COLUMN inherits",
            "ALTER TABLE tokens ADD COLUMN used_at FLOAT",
            "DROP TABLE exposures",
            "DROP TABLE visitors",
            "UPDATE alembic_version SET version_num = '0001'",
        ):
            c.execute(text(statement))
    again = World(Database(here.database.url))
    again.configure(overlap=3, gold_every=0)
    with again.database.read() as c:
        assert [row.overlap for row in c.execute(text("SELECT overlap FROM items ORDER BY id"))] == [3, 2]
    again.database.close()
    assert (here.database_folder() / "labels.db.before-0003").is_file()
