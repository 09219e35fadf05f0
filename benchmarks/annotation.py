"""The annotation server under load, and killed at random moments.

``python -m benchmarks.annotation load`` and ``python -m benchmarks.annotation kill``.

Everything stays on 127.0.0.1 and is bounded by ``--seconds``, ``--kills`` and the number of people. The
people are simulated: each signs in, then judges and asks for the next item in one request, with a pause
drawn from an exponential distribution in between. After each run the database is checked: no item has
more judgements than its overlap, nobody judged an item twice, and every judgement the server
acknowledged is there, as it was sent.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import re
import secrets
import socket
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
from argon2 import PasswordHasher

from benchmarks.machine import machine
from trimtab.records.annotation import Task
from trimtab.records.types import Prompt
from trimtab.storage.database import Database
from trimtab.storage.project import ProjectConfig
from trimtab.web.server import Project, open_project, serve

PASSWORD = "benchmark password"


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["trimtab.web.server", "trimtab.web.app", "alembic.command", "uvicorn", "httpx", "psutil"]
)


def _serve(folder: Path, port: int) -> None:
    project = open_project(folder)
    serve(project, port=port, say=lambda _: None)


class Server:
    """The server of ``trimtab annotate`` in a process of its own, forked from one that has done the imports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = _FORKS.Process()

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.process = _FORKS.Process(target=_serve, args=(self.folder, self.port), daemon=True)
        self.process.start()
        while self.process.is_alive():
            try:
                socket.create_connection(("127.0.0.1", self.port), 0.1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise SystemExit(f"the server ended with exit code {self.process.exitcode}")

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        self.process.kill()
        self.process.join()


def prepare(folder: Path, *, items: int, judged: int, overlap: int, people: int) -> Project:
    """A project with items, older judgements, and the people of this run (a cheap hash: signing in is not measured)."""
    project = open_project(folder)
    project.store.set_config(ProjectConfig(overlap=overlap, gold_every=0, lease_minutes=60.0))
    words = "calm sea wind sail boat rudder tab trim speed angle turn hold slow fast left right".split()
    rng = random.Random(0)

    def text(count: int) -> str:
        return " ".join(rng.choices(words, k=count))

    for start in range(0, items, 5000):
        tasks = [
            Task.of(Prompt.from_text(f"{n}: {text(12)}?"), [text(60), text(70)])
            for n in range(start, min(items, start + 5000))
        ]
        added, refused = project.store.add(tasks)
        assert not refused, refused[:1]
        print(f"\r{start + added} items", end="", flush=True, file=sys.stderr)
    hashed = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
    old = max(1, min(overlap, -(-judged // max(1, items))))
    path = project.store.database.name
    project.close()
    connection = sqlite3.connect(path)
    now = time.time()
    with connection:
        rows = [(f"a-old{n}", f"old {n}", f"old {n}", "annotator", None, now) for n in range(old)]
        rows += [(f"a-new{n}", f"new {n}", f"new {n}", "annotator", hashed, now) for n in range(people)]
        columns = "(pseudonym, name, name_key, role, password, created_at)"
        connection.executemany(f"INSERT INTO people {columns} VALUES (?, ?, ?, ?, ?, ?)", rows)
        _old_judgements(connection, judged, old, overlap, now)
    connection.close()
    print(file=sys.stderr)
    return open_project(folder)


def _old_judgements(connection: sqlite3.Connection, judged: int, old: int, overlap: int, now: float) -> None:
    """Judgements as the app writes them, in bulk."""
    people = [row[0] for row in connection.execute("SELECT id FROM people WHERE name LIKE 'old %' ORDER BY id")]
    first = (connection.execute("SELECT max(seq) FROM events").fetchone()[0] or 0) + 1
    events, rows = [], []
    for n in range(judged):
        item, person = n // old + 1, people[n % old]
        submission = {
            "id": secrets.token_hex(12),
            "shown_order": [n % 2, 1 - n % 2],
            "verdict": "judged",
            "seconds": 9.0,
        }
        body = json.dumps(submission | {"answers": [{"ranks": [0, 1]}], "digest": "0" * 16})
        events.append((first + n, now, "judgement", person, item, f"old-{n}", body))
        rows.append((first + n, item, person, "judged", 9.0, None, False, now))
    columns = "(seq, at, kind, person_id, item_id, key, body)"
    connection.executemany(f"INSERT INTO events {columns} VALUES (?, ?, ?, ?, ?, ?, ?)", events)
    connection.executemany("INSERT INTO judgements VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    connection.execute(
        "UPDATE items SET done = n, taken = n, open = n < overlap FROM "
        "(SELECT item_id, count(*) AS n FROM judgements GROUP BY item_id) WHERE items.id = item_id"
    )


class Worker:
    """One simulated annotator.

    Args:
        url: the server.
        name: account.
        pause: average seconds between getting an item and submitting it.
        until: monotonic time at which to stop.
    """

    def __init__(self, url: str, name: str, pause: float, until: float) -> None:
        self.url, self.name, self.pause, self.until = url, name, pause, until
        self.random = random.Random(name)
        self.times: list[float] = []
        self.acknowledged: dict[str, Any] = {}
        self.twice = 0
        self.retries = 0
        self.late = 0

    async def run(self) -> None:
        """Judge until the time is over or nothing is left."""
        async with httpx.AsyncClient(base_url=self.url, timeout=30) as self.client:
            await self._retry(self._sign_in)
            reply = await self._retry(self._next)
            await asyncio.sleep(self.random.random() * self.pause)
            while reply["item"] is not None and time.monotonic() < self.until:
                await asyncio.sleep(self.random.expovariate(1 / self.pause) if self.pause else 0)
                form = {
                    "item": reply["item"],
                    "key": secrets.token_hex(16),
                    "answers": [{"ranks": self.random.choice([[0, 1], [1, 0]]), "strength": 0.6667}],
                    "seconds": 5.0,
                }
                reply = await self._retry(lambda form=form: self._submit(form))
                if reply["stored"] == "stored":
                    self.twice += form["item"] in self.acknowledged
                    self.acknowledged[form["item"]] = [form["key"], form["answers"][0]["ranks"]]
                else:
                    self.late += 1

    async def _retry(self, action: Any) -> Any:
        while True:
            try:
                return await action()
            except httpx.TransportError:
                self.retries += 1
                await asyncio.sleep(0.1 + 0.2 * self.random.random())

    async def _sign_in(self) -> None:
        answer = await self.client.post("/signin", data={"name": self.name, "password": PASSWORD})
        if answer.status_code == 429:
            raise SystemExit("too many sign-ins from one address; the benchmark makes its sessions itself")
        answer.raise_for_status()

    async def _next(self) -> Any:
        page = await self.client.get("/profile")
        result = re.search(r'data-csrf="([^"]+)"', page.text)
        assert result, "not signed in"
        self.client.headers["X-CSRF-Token"] = result[1]
        return (await self.client.get("/work/next")).raise_for_status().json()

    async def _submit(self, form: dict[str, Any]) -> Any:
        started = time.perf_counter()
        answer = await self.client.post("/work/submit", json=form)
        if answer.status_code == 503:
            raise httpx.TransportError("503")
        if answer.status_code != 200:
            raise SystemExit(f"{answer.status_code}: {answer.text}")
        self.times.append(time.perf_counter() - started)
        return answer.json()


class Invited(Worker):
    """A worker whose session was made beforehand, as sign-ins from one address are limited."""

    session = ("", "")

    async def _sign_in(self) -> None:
        self.client.cookies.set(*self.session)


def workers(project: Project, server: Server, people: int, pause: float, seconds: float) -> list[Worker]:
    until = time.monotonic() + seconds
    made: list[Worker] = []
    for n in range(people):
        worker = Invited(server.url, f"new {n}", pause, until)
        secret = project.people.sign_in(worker.name, PASSWORD)
        worker.session = (f"trimtab_{project.store.project_id}", secret)
        made.append(worker)
    return made


def check(folder: Path, done: list[Worker]) -> dict[str, Any]:
    """What the database says afterwards."""
    c = sqlite3.connect(folder / "labels.db")
    one = lambda query: c.execute(query).fetchone()[0]  # noqa: E731
    counts = "(SELECT item_id, sum(verdict = 'judged') AS n FROM judgements GROUP BY item_id)"
    stored = {
        (name, uid): [key, json.loads(body)["answers"][0]["ranks"]]
        for name, uid, key, body in c.execute(
            "SELECT p.name, i.uid, e.key, e.body FROM judgements j JOIN people p ON p.id = j.person_id "
            "JOIN items i ON i.id = j.item_id JOIN events e ON e.seq = j.seq"
        )
    }
    acknowledged = {(w.name, uid): content for w in done for uid, content in w.acknowledged.items()}
    result = {
        "acknowledged": len(acknowledged),
        "missing": sum(stored.get(pair) != content for pair, content in acknowledged.items()),
        "twice": sum(w.twice for w in done),
        "over_overlap": one(f"SELECT count(*) FROM {counts} JOIN items i ON i.id = item_id WHERE n > i.overlap"),
        "wrong_counters": one(f"SELECT count(*) FROM {counts} JOIN items i ON i.id = item_id WHERE n <> i.done"),
        "late": sum(w.late for w in done),
        "integrity": one("PRAGMA integrity_check"),
    }
    c.close()
    return result


def load(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everybody at work, nobody disturbed."""
    project = prepare(
        folder, items=options.items, judged=options.judged, overlap=options.overlap, people=options.people
    )
    server = Server(folder)
    server.start()
    try:
        done = workers(project, server, options.people, options.pause, options.seconds)
        started = time.monotonic()
        process = psutil.Process(server.process.pid)
        before = sum(process.cpu_times()[:2])
        asyncio.run(_together(done))
        took = time.monotonic() - started
        cpu = sum(process.cpu_times()[:2]) - before
    finally:
        server.kill()
        project.close()
    times = sorted(t for w in done for t in w.times)
    percent = statistics.quantiles(times, n=100)
    figures = {"requests": len(times), "per_second": round(len(times) / took, 1)}
    figures["server_cpu_ms_each"] = round(1000 * cpu / len(times), 2)
    figures |= {f"p{p}_ms": round(1000 * percent[p - 1], 1) for p in (50, 95, 99)}
    return figures | check(folder, done)


def kill(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everybody at work while the server is killed and started again."""
    project = prepare(folder, items=options.items, judged=0, overlap=options.overlap, people=options.people)
    server = Server(folder)
    server.start()
    done = workers(project, server, options.people, options.pause, options.seconds)
    kills = 0

    def acknowledged() -> int:
        return sum(len(worker.acknowledged) for worker in done)

    def killer() -> None:
        nonlocal kills
        rng = random.Random(1)
        end = time.monotonic() + options.seconds
        while kills < options.kills and time.monotonic() < end:
            goal, patience = acknowledged() + rng.randrange(30), time.monotonic() + 3
            while acknowledged() < goal and time.monotonic() < patience:
                time.sleep(0.02 * rng.random())
            server.kill()
            kills += 1
            server.start()
        for worker in done:
            worker.until = 0.0

    async def both() -> None:
        await asyncio.gather(asyncio.to_thread(killer), _together(done))

    try:
        asyncio.run(both())
    finally:
        server.kill()
        project.close()
    Database(f"sqlite:///{folder / 'labels.db'}").close()  # it opens as it should
    retries = sum(w.retries for w in done)
    return {"kills": kills, "retries": retries} | check(folder, done)


async def _together(done: list[Worker]) -> None:
    await asyncio.gather(*(w.run() for w in done))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("load", "kill"))
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--judged", type=int, default=300_000, help="judgements there are before (load only)")
    parser.add_argument("--overlap", type=int, default=4)
    parser.add_argument(
        "--pause", type=float, default=5.0, help="average seconds between two submissions of one person"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="at most")
    parser.add_argument("--kills", type=int, default=200)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="trimtab-annotation-") as folder:
        result = (load if options.what == "load" else kill)(options, Path(folder))
    result |= {"machine": machine(), "load_average": round(os.getloadavg()[0], 1)}
    print(json.dumps(vars(options) | result, indent=2))
    bad = result["missing"] or result["twice"] or result["over_overlap"] or result["wrong_counters"]
    return 1 if bad or result["integrity"] != "ok" else 0


if __name__ == "__main__":
    sys.exit(main())
