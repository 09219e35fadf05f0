"""The label database: opening, migration, transactions, backup, and error messages.

SQLite runs in WAL mode with ``synchronous=FULL``, so acknowledged data is on the disk. PostgreSQL is used if the URL
names it. Both have one writer at a time (``BEGIN IMMEDIATE``, or one advisory lock), so what a transaction has read is
still true when it writes. Readers never wait.
"""

import errno
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DBAPIError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.pool import QueuePool

from trimtab.errors import ConfigError, StorageError
from trimtab.files import storage_errors

REVISION = "0003"
"""The schema this version of trimtab reads and writes; the last file in ``migrations/versions``."""

BUSY_MILLISECONDS = 10_000
"""How long a writer waits for another process's transaction before it fails."""

_LOCK = 7402517063
"""Number of the advisory lock that makes PostgreSQL's writers take turns."""


class Database:
    """An open label database.

    Args:
        url: ``sqlite:///path/labels.db`` or ``postgresql+psycopg://…``.

    Raises:
        ConfigError: the URL is not one of these.
        StorageError: the database cannot be opened, is read-only, or was written by a newer trimtab.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            parsed = make_url(url)
        except ArgumentError:
            raise ConfigError(f"{url!r} is not a database URL; use sqlite:///FILE or postgresql+psycopg://…") from None
        self.sqlite = parsed.get_backend_name() == "sqlite"
        if not self.sqlite and parsed.get_backend_name() != "postgresql":
            raise ConfigError(f"{parsed.get_backend_name()!r} is not supported; use SQLite or PostgreSQL")
        if not self.sqlite and parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        self.name = parsed.render_as_string(hide_password=True) if not self.sqlite else str(parsed.database)
        self._turn = threading.Lock()
        if self.sqlite:
            self._check_file(Path(str(parsed.database)))
            options = {"connect_args": {"check_same_thread": False}, "poolclass": QueuePool}
        else:
            options = {"pool_pre_ping": True}
        try:
            self.engine = create_engine(
                parsed, pool_size=8, max_overflow=40, pool_timeout=30, hide_parameters=True, **options
            )
        except NoSuchModuleError as error:
            raise ConfigError(f"{url!r} is not a database URL that works here: {error}") from None
        if self.sqlite:
            event.listen(self.engine, "connect", _pragmas)
            event.listen(self.engine, "begin", _begin)
        try:
            self._migrate()
        except BaseException:
            self.engine.dispose()
            raise

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent snapshot; nothing is written."""
        with explained(self.name), self.engine.connect() as connection:
            if not self.sqlite:  # by default, each statement sees a newer state
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """All or nothing, one writer at a time. When it returns, the changes are on the disk."""
        with explained(self.name), self._turn:
            with self.engine.connect().execution_options(write=True) as connection, connection.begin():
                if not self.sqlite:
                    connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _LOCK})
                yield connection

    def backup(self, target: Path) -> None:
        """Copy the database to a file while it is in use; the copy is checked before it replaces the file.

        Raises:
            ConfigError: the database is not SQLite, or ``target`` is the database itself.
            StorageError: the copy cannot be written, or fails SQLite's integrity check.
        """
        if not self.sqlite:
            raise ConfigError("a backup of PostgreSQL is made with its own tool: pg_dump --format=custom")
        if target.exists() and target.samefile(self.name):
            raise ConfigError(f"{target}: is the database itself; name another file for the copy")
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        with storage_errors(target), explained(str(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                source, copy = sqlite3.connect(self.name), sqlite3.connect(temporary)
                try:
                    source.backup(copy)
                    [(verdict,)] = copy.execute("PRAGMA integrity_check").fetchall()
                finally:
                    source.close()
                    copy.close()
                if verdict != "ok":
                    raise StorageError(f"{target}: the copy is damaged ({verdict}); the original may be too, keep both")
                with open(temporary, "rb+") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)

    def _check_file(self, path: Path) -> None:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not path.exists()
            with open(path, "ab"):
                pass
            if is_new:
                path.chmod(0o600)
        if not os.access(path.parent, os.W_OK):
            raise StorageError(f"{path.parent}: no permission to write there; choose another folder")

    def _migrate(self) -> None:
        with explained(self.name), self.engine.connect() as connection:
            revision = None
            if self.engine.dialect.has_table(connection, "alembic_version"):
                revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        if revision == REVISION:
            return
        from alembic import command
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        known_revisions = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if revision is not None and revision not in known_revisions:
            raise StorageError(
                f"{self.name}: its schema {revision!r} is newer than this trimtab knows ({REVISION!r}); nothing was "
                "changed; update trimtab, or open a backup made by this version"
            )
        if revision is not None and self.sqlite:
            self.backup(Path(self.name).with_name(f"{Path(self.name).name}.before-{REVISION}"))
        with self.write() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn the driver's errors into a :class:`StorageError` that says what to do."""
    try:
        yield
    except SQLAlchemyError as error:
        if isinstance(error, DBAPIError) and not isinstance(error, DatabaseError):
            raise
        if not isinstance(error, OperationalError) and "attempt to write a readonly" not in str(error):
            if not (isinstance(error, DatabaseError) and _reason(str(error.orig))):
                raise
        raise StorageError(f"{name}: {_reason(str(getattr(error, 'orig', error))) or 'the database failed'}") from error
    except sqlite3.Error as error:
        raise StorageError(f"{name}: {_reason(str(error)) or error}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EROFS, errno.EACCES):
            with storage_errors(Path(name)):
                raise
        raise


def _reason(message: str) -> str | None:
    reasons = {
        "readonly database": "the database is read-only; give this user write permission to the file and its folder",
        "disk is full": "the disk is full; free some space and try again, nothing that was saved is lost",
        "disk i/o": "the disk failed or is full; free some space and try again, nothing that was saved is lost",
        "database is locked": "another process holds the database; wait a moment and try again",
        "not a database": "this file is not a label database; choose another one, or restore a backup",
        "malformed": "the file is damaged; restore a backup (trimtab data backup makes them)",
        "unable to open": "cannot be opened; check the path and the permissions of its folder",
        "connect": "no connection to the database server; check the URL and that the server runs",
    }
    return next((reason for sign, reason in reasons.items() if sign in message.lower()), None)


def _pragmas(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # transactions are begun by _begin
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"busy_timeout={BUSY_MILLISECONDS}",
        "cache_size=-32000",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
