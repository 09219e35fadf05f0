"""Two databases for every storage test, SQLite always and PostgreSQL where its programs are installed."""

import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from trimtab.storage import database as database_module
from trimtab.storage.database import Database

from .kit import Browser, World
from .live import chromium, page, server

__all__ = ["chromium", "page", "server"]

_POSTGRES = next(
    (p for p in [shutil.which("initdb"), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")))] if p),
    None,
)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a private PostgreSQL server that listens on a socket in a temporary folder only."""
    pytest.importorskip("psycopg", reason="NOT TESTED: PostgreSQL, as psycopg is not installed")
    if _POSTGRES is None:
        pytest.skip("NOT TESTED: PostgreSQL, as its programs (initdb, pg_ctl) are not on this machine")
    programs, as_user = Path(_POSTGRES).parent, []
    folder = Path(tempfile.mkdtemp(prefix="trimtab-pg-"))  # pytest's own folders are closed to other users
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        as_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        if shutil.which("setpriv") is None:
            pytest.skip("NOT TESTED: PostgreSQL does not run as root, and setpriv is not installed")
        os.chown(folder, 65534, 65534)
    data = folder / "data"

    def call(*words: str) -> None:
        done = subprocess.run([*as_user, *words], capture_output=True, text=True, cwd=folder, stdin=subprocess.DEVNULL)
        if done.returncode:
            pytest.skip(f"NOT TESTED: PostgreSQL does not start here: {done.stderr.strip()[-300:]}")

    call(str(programs / "initdb"), "-D", str(data), "-U", "tester", "--auth=trust", "--no-sync", "-E", "UTF8")
    options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
    call(str(programs / "pg_ctl"), "-D", str(data), "-o", options, "-w", "-l", str(folder / "log"), "start")
    yield f"postgresql+psycopg://tester@/postgres?host={folder}"
    call(str(programs / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def quick_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2 with less work, so that signing in does not take most of the tests' time."""
    hasher = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
    monkeypatch.setattr("trimtab.storage.people._hasher", lambda: hasher)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_database() -> Iterator[None]:
    """SQLite hands its pages to the system and goes on, like PostgreSQL above with ``fsync=off``."""

    def pragmas(connection: sqlite3.Connection, record: object) -> None:
        durable(connection, record)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,), "FULL, as the module promises"
        connection.execute("PRAGMA synchronous=OFF")

    durable = database_module._pragmas
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database_module, "_pragmas", pragmas)
        yield


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite project, which tests copy instead of running the migrations again."""
    path = tmp_path_factory.mktemp("migrated") / "labels.db"
    Database(f"sqlite:///{path}").close()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A project on each of the two databases."""
    if request.param == "sqlite":
        url = f"sqlite:///{shutil.copy(request.getfixturevalue('migrated'), tmp_path)}"
    else:
        url = request.getfixturevalue("postgres")
        _empty(url)
    made = World(Database(url))
    yield made
    made.database.close()


@pytest.fixture
def here(tmp_path: Path, migrated: Path) -> Iterator[World]:
    """A project on SQLite."""
    made = World(Database(f"sqlite:///{shutil.copy(migrated, tmp_path)}"))
    yield made
    made.database.close()


@pytest.fixture
def visit(here: World):
    """Clients of the app: ``visit("owner")`` is signed in as one, ``visit("")`` is nobody."""
    app = here.app()
    opened: list[Browser] = []

    def open_as(role: str) -> Browser:
        browser = Browser(app, raise_server_exceptions=True)
        opened.append(browser)
        if role:
            name = f"{role} {len(opened)}"
            here.join(name, role.split()[0])  # pyright: ignore
            browser.sign_in(name)
        return browser

    yield open_as
    for browser in opened:
        browser.close()


def _empty(url: str) -> None:
    from sqlalchemy import create_engine, text

    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
