"""Projects out and in, the API, the commands, the catalogue, the webhook."""

import hashlib
import html
import http.server
import json
import re
import socket
import string
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.cli.app import run_app
from trimtab.errors import ConflictError, DataError
from trimtab.records import Preference, load
from trimtab.records.annotation import Submission
from trimtab.storage.curation import STATES
from trimtab.storage.database import Database
from trimtab.storage.form import Form
from trimtab.storage.people import People
from trimtab.storage.snapshot import load_snapshot, take_snapshot
from trimtab.web import strings
from trimtab.web.exchange import FORMATS, _files, export_folder, import_folder
from trimtab.web.webhook import Webhook

from .kit import PASSWORD, World, judge

WEB = Path(strings.__file__).parent


@pytest.fixture
def full(world: World) -> World:
    """Two people, one adjudication, every kind of task, a skip, a gold item, an undone judgement, guidelines."""
    world.configure(overlap=2, gold_every=2, rewrite=True, min_cell=2)
    world.store.set_guideline("Be kind.")
    world.add(
        {"prompt": "q1", "answers": ["a", "b"]},
        {"prompt": "q2", "answers": ["a", "b", "c"], "batch": "second"},
        {"prompt": "q3", "answers": ["a"], "kind": "thumbs", "overlap": 1},
        {"prompt": "q4", "steps": ["s1", "s2"], "kind": "steps", "overlap": 1},
        {"prompt": "q5", "answers": ["g", "w"], "check": {"role": "gold", "ranks": [0, 1]}},
    )
    one, two, boss = world.join("one"), world.join("two"), world.join("boss", "adjudicator")
    for person in (one, two):
        world.people.profile(person.id, language="de", cohort={"region": "north"})
    world.people.profile(one.id, language="en", cohort={"region": "island of one"})
    for person, best in ((one, 0), (two, 1)):
        item, turn = world.store.next(person.id), 0
        while not isinstance(item, str):
            turn += 1
            if item.task.kind == "compare" and len(item.task.completions) == 2:
                form = judge(item, f"{person.id}-{turn}", best=best, rewrite={"of": 0, "text": "better"})
            elif item.task.kind == "compare":
                form = Form(item=item.task.id, key=f"test-key-{person.id}-{turn}", verdict="skip")
            else:
                answer = {"good": True} if item.task.kind == "thumbs" else {"first_wrong": 1}
                form = Form.model_validate({"item": item.task.id, "key": f"test-key-{person.id}-{turn}", **answer})
            receipt, item = world.store.submit(person.id, form)
            if turn == 1:
                item = world.store.undo(person.id, receipt.version)
    [(task, _)] = world.store.disputed()
    item, _ = world.store.dispute(task.id, boss.id)
    world.store.adjudicate(boss.id, judge(item, "boss", best=1, reason="noise"))
    return world


def test_the_import_of_an_export_is_identical(full: World, tmp_path: Path):
    manifest = export_folder(full.store, "trimtab", tmp_path / "out")
    again = World(Database(f"sqlite:///{tmp_path}/again.db"))
    import_folder(again.store, tmp_path / "out")
    export_folder(again.store, "trimtab", tmp_path / "out2")
    for name in ("tasks.jsonl", "submissions.jsonl", "project.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "out2" / name).read_bytes(), name
        data = (tmp_path / "out" / name).read_bytes()
        assert manifest["files"][name]["sha256"] == hashlib.sha256(data).hexdigest()
    assert again.store.progress() == full.store.progress()
    with pytest.raises(ConflictError, match="has items already"):
        import_folder(again.store, tmp_path / "out")
    with pytest.raises(DataError, match="not empty"):
        export_folder(full.store, "trimtab", tmp_path / "out")
    (tmp_path / "out" / "tasks.jsonl").write_text("{}")
    fresh = World(Database(f"sqlite:///{tmp_path}/fresh.db"))
    with pytest.raises(DataError, match="was changed since"):
        import_folder(fresh.store, tmp_path / "out")
    for made in (again, fresh):
        made.database.close()


def test_a_tighter_limit_does_not_keep_an_export_out(world: World, tmp_path: Path):
    """What is in a project stays in it when the owner allows less; and an import that fails leaves nothing behind."""
    world.add({"prompt": "q", "answers": list("abcdef")}, {"prompt": "\ud7ff", "answers": ["a", "b"]})
    world.configure(max_answers=4, overlap=3)
    export_folder(world.store, "trimtab", tmp_path / "out")
    again = World(Database(f"sqlite:///{tmp_path}/again.db"))
    broken = take_snapshot(world.store)
    stranger = Submission(id="s", task="unknown", annotator="a", verdict="skip")
    with pytest.raises(KeyError):
        load_snapshot(again.store, replace(broken, submissions=(stranger,)))
    assert again.store.config().overlap == 2 and again.store.tasks() == []
    assert import_folder(again.store, tmp_path / "out") == {"tasks": 2, "submissions": 0}
    assert again.store.progress().needed == 6
    again.configure(max_answers=4, overlap=4)
    assert again.store.progress().needed == 8  # the items took the project's overlap there, and do so here
    again.database.close()


def test_items_of_any_name_are_settled_and_retired(here: World, visit):
    names = ["a/b", "../x", "..", "submit", "?q=1&é#"]
    rows = [{"prompt": f"q {n}", "answers": ["a", "b"], "id": n} for n in names]
    here.configure(overlap=2, gold_every=0)
    here.add(*rows)
    me = here.join("me").id
    item = here.store.next(me)
    while not isinstance(item, str):
        form = {"item": item.task.id, "key": f"test {item.task.id:>9}", "verdict": "flag", "reason": "broken"}
        _, item = here.store.submit(me, Form.model_validate(form))
    boss = visit("adjudicator")
    links = re.findall(r'href="(/adjudicate/item[^"]+)"', boss.get("/adjudicate").text)
    assert len(links) == 5
    for link, name in zip(links, names, strict=True):
        page = boss.get(link.replace("&amp;", "&"))
        assert page.status_code == 200 and f"q {name}" in html.unescape(page.text)
        assert 'data-act="send-flag"' not in page.text and "<kbd>S</kbd>" not in page.text
        assert boss.fill("/adjudicate/retire", item=name).status_code == 200
    assert len(take_snapshot(here.store).retired) == 5


def test_forms_have_the_projects_criteria_after_a_restart(here: World):
    here.configure(criteria=({"name": "clear", "kind": "scale"},), gold_every=0)
    here.pairs(2)
    me = here.join("me").id
    form = {"key": "test-key-1", "answers": [{"criterion": "clear", "scores": [1, 5]}]}
    receipt, _ = here.store.submit(me, Form.model_validate({"item": here.store.next(me).task.id, **form}))  # pyright: ignore
    again = World(Database(here.database.url))
    from .kit import Browser

    with Browser(again.app()) as browser:  # signed in before; this is the first thing the new process is asked
        browser.cookies.set(browser.app.state.cookie, here.people.sign_in("me", PASSWORD))  # pyright: ignore
        page = browser.get(f"/work?change={receipt.version}")
    again.database.close()
    assert 'data-criterion="clear"' in page.text and 'data-criterion="overall"' not in page.text


def test_older_guidelines_can_be_read(here: World, visit):
    for body in ("first rule", "second rule"):
        here.store.set_guideline(body)
    client = visit("annotator")
    assert "second rule" in client.get("/guidelines").text
    assert "first rule" in client.get("/guidelines?version=1").text
    assert client.get("/guidelines?version=9").status_code == 200


def test_manifests_account_for_everything(full: World):
    manifest = json.loads(_files(full.store, "trl")["manifest.json"])
    assert manifest["submissions"] == sum(manifest["verdicts"].values())
    assert manifest["dropped"]["taken back by the annotator"] == 2
    assert manifest["dropped"]["check item"] >= 1
    assert manifest["groups_hidden"] > 0  # the island of one
    before = json.loads(_files(full.store, "csv")["manifest.json"])["dropped"]
    [first, *_] = full.store.tasks()
    full.store.retire(first[1].id, person=1)
    after = json.loads(_files(full.store, "csv")["manifest.json"])["dropped"]
    assert set(after) - set(before) == {"item retired"} and after["item retired"] == 3  # two people and the adjudicator
    text = _files(full.store, "trimtab")["submissions.jsonl"].decode()
    assert "island" not in text and "region=north" not in text  # one person each
    assert all(name not in text for name in ("boss", '"one"', '"two"'))


def test_other_formats_are_read_by_their_readers(full: World, tmp_path: Path):
    for format in FORMATS:
        files = _files(full.store, format)
        (tmp_path / format).mkdir()
        for name, data in files.items():
            (tmp_path / format / name).write_bytes(data)
    pairs = load(tmp_path / "trl" / "preferences.jsonl", kind=Preference)
    assert [len(pairs.records), len(pairs.refused)] == [1, 0]
    assert pairs.records[0].completions[0].text == "b"  # the adjudicator's word
    [row] = [json.loads(line) for line in (tmp_path / "unpaired" / "ratings.jsonl").read_text().splitlines()]
    assert row["label"] is True and row["completion"] == [{"role": "assistant", "content": "a"}]
    [row] = [json.loads(line) for line in (tmp_path / "steps" / "steps.jsonl").read_text().splitlines()]
    assert (row["first_wrong"], row["steps"]) == (1, ["s1", "s2"])
    rows = (tmp_path / "rewrites" / "demonstrations.jsonl").read_text().splitlines()
    assert rows and all(json.loads(row)["messages"][-1]["content"] == "better" for row in rows)
    assert len((tmp_path / "csv" / "judgements.csv").read_text().splitlines()) > 5


def test_the_api(here: World, visit):
    client = visit("")
    read, write = (here.people.new_token(s, s, by=here.join(s, "owner").id) for s in ("read", "write"))
    reader, writer = ({"Authorization": f"Bearer {token}"} for token in (read, write))
    new = {"items": [{"prompt": "q", "answers": ["a", "b"]}, {"prompt": "q", "answers": ["a", "b"]}, {"x": 1}]}
    assert client.post("/api/v1/items", json=new, headers=reader).status_code == 403
    added = client.post("/api/v1/items", json=new, headers=writer).json()
    assert added["added"] == 1 and [r["index"] for r in added["refused"]] == [1, 2]
    me = here.join("me").id
    here.store.submit(me, judge(here.store.next(me), "1", best=1))
    page = client.get("/api/v1/judgements", headers=reader).json()
    assert page["judgements"][0]["submission"]["verdict"] == "judged" and page["next"] is None
    assert client.get("/api/v1/items", headers=reader).json()["items"][0]["task"]["prompt"]["messages"]
    assert client.get("/api/v1/status", headers=reader).json()["done"] == 1
    estimates = client.get("/api/v1/agreement", headers=reader).json()["estimates"]
    assert estimates["raw_agreement"]["reason"] and estimates["first_shown_wins"]["n"] == 1
    here.people.revoke(1, by=me)
    assert client.get("/api/v1/status", headers=reader).status_code == 401


def test_every_page_in_every_language(full: World):
    from .kit import Browser

    full.join("olga", "owner")
    app = full.app()
    for language in strings.catalogues():
        with Browser(app) as browser:
            browser.sign_in("olga")
            browser.headers["accept-language"] = language
            pages = "/work /history /guidelines /profile /adjudicate /manage /manage/items /manage/people".split()
            pages += "/manage/settings /manage/guidelines /manage/tokens /manage/export /signin".split()
            pages += [f"/manage/item?id={item.task.id}" for item in full.store.find()[0]]
            pages += [f"/manage/items?state={state}" for state in STATES]
            for path in pages:
                page = browser.get(path)
                assert page.status_code == 200 and f'lang="{language}"' in page.text, (path, page.text[:300])


def test_catalogues_say_the_same_things():
    english = strings.catalogues()["en"]

    def holes(text: str) -> set[str]:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    for language, phrases in strings.catalogues().items():
        assert set(phrases) == set(english), language
        for key, phrase in phrases.items():
            assert phrase.strip() and holes(phrase) == holes(english[key]), (language, key)
    used = {
        key for page in (WEB / "templates").glob("*.html") for key in re.findall(r"t\('([\w.]+)'[,)]", page.read_text())
    }
    used |= set(re.findall(r'say\("([\w.]+)"', (WEB / "static" / "app.js").read_text()))
    assert used <= set(english)
    source = "".join(page.read_text() for part in ("web", "storage") for page in WEB.with_name(part).glob("*.py"))
    phrases = {phrase for key, phrase in english.items() if key.startswith("error.") and key != "error.title"}
    assert {phrase for phrase in phrases if phrase not in source} == {"Not Found"}  # that one is Starlette's


def test_errors_are_in_the_readers_language(here: World, visit):
    page = visit("").get("/join/guess", headers={"Accept-Language": "de-AT,en;q=0.5"})
    assert "Dieser Link ist nicht bekannt" in page.text and "Das hat nicht geklappt" in page.text


def test_the_app_needs_no_torch(tmp_path: Path):
    """The ``web`` extra brings neither torch nor transformers; here they cannot be imported."""
    (tmp_path / "items.jsonl").write_text('{"prompt": "q", "answers": ["a", "b"]}\n')
    check = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'peft', 'safetensors', 'pyarrow'): sys.modules[name] = None\n"
        "from trimtab.cli.app import run_app\n"
        "import trimtab.web.server, trimtab.web.webhook\n"
        "for line in ('annotate p --items items.jsonl --no-serve', 'data export p out', 'data import out again',\n"
        "             'data backup p copy.db', 'agreement again'):\n"
        "    assert run_app(line.split()) == 0, line\n"
        "project = trimtab.web.server.open_project(__import__('pathlib').Path('p'))\n"
        "trimtab.web.server.create_app(project.store, project.people)\n"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_commands(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("items.jsonl").write_text('{"prompt": "q", "answers": ["a", "b"]}\nnonsense\n')
    assert run_app(["annotate", "p", "--items", "items.jsonl", "--no-serve"]) == 0
    assert "1 items added, 1 refused" in capsys.readouterr().out
    Path("queue.jsonl").write_text('{"prompt": "q", "answers": ["a", "b"], "overlap": 3}\n')
    for changed in (True, False):  # the router asks more people about existing items
        assert run_app(["annotate", "p", "--items", "queue.jsonl", "--no-serve"]) == 0
        assert ("1 existing items now go to 3 annotators each" in capsys.readouterr().out) == changed
    assert run_app(["data", "export", "p", "out"]) == run_app(["data", "backup", "p", "copy.db"]) == 0
    assert run_app(["data", "import", "out", "p2"]) == run_app(["agreement", "p2"]) == 0
    assert run_app(["agreement", "p", "--json"]) == 0
    capsys.readouterr()
    assert run_app(["agreement", "nowhere"]) == 8
    assert "name the folder of an annotation project" in capsys.readouterr().err
    assert run_app(["data", "export", "p", "out"]) == 3
    assert run_app(["data", "export", "p", "o", "--format", "xml"]) == 2
    assert run_app(["annotate", "p", "--webhook", "http://127.0.0.1:9/x", "--port", "0"]) == 2  # no secret to sign with
    assert "TRIMTAB_WEBHOOK_SECRET" in capsys.readouterr().err
    database = Database("sqlite:///p/labels.db")
    world = World(database)
    world.join("olga", "owner")
    assert run_app(["annotate", "p", "--no-serve", "--owner-link"]) == 0
    [token] = re.findall(r"http://127.0.0.1:8765/join/(\S+)", capsys.readouterr().out)
    assert People(database).invitation(token).role == "owner"
    database.close()
    assert run_app(["annotate", "p", "--public-url", "labels.example.org"]) == 2


def test_the_webhook_survives_nonsense_and_hears_of_each_judgement_once(here: World):
    got = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for _ in range(4):  # three tries of the first message, one of the second
                connection, _ = server.accept()
                with connection:
                    heard = b""
                    while not heard.partition(b"\r\n\r\n")[2]:  # head and body may come apart
                        heard += connection.recv(65536)
                    got.append(heard.partition(b"\r\n\r\n")[2])
                    connection.sendall(b"nonsense\r\n\r\n" if len(got) < 4 else b"HTTP/1.1 200 OK\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        hook = Webhook(f"http://127.0.0.1:{server.getsockname()[1]}/", "secret")
        here.pairs(2)
        me = here.join("me").id
        item = here.store.next(me)
        from .kit import Browser

        with Browser(here.app(notify=hook.send)) as browser:
            browser.sign_in("me")
            for key in ("1", "1", "2"):  # the second time, as after a lost answer
                item = here.store.next(me) if key == "2" else item
                assert browser.submit("/work/submit", judge(item, key).model_dump(mode="json")).status_code == 200
        thread.join(10)
        hook.close()
    assert hook.dropped == 1
    assert len(got) == 4 and len(set(got)) == 2


def test_the_webhook_tells_ids_and_follows_nothing(monkeypatch):
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append((self.path, dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(302 if len(seen) == 1 else 200)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        hook = Webhook(f"http://127.0.0.1:{server.server_port}/hook", "secret")
        hook.send({"event": "judgement", "item": "i"})
        hook.close()
        server.shutdown()
        thread.join()
    assert [path for path, _, _ in seen] == ["/hook", "/hook"]  # the redirect was not followed, the message sent again
    import hmac

    expected = hmac.new(b"secret", seen[0][2], hashlib.sha256).hexdigest()
    assert seen[0][1]["X-Trimtab-Signature"] == f"sha256={expected}"
    assert json.loads(seen[0][2]) == {"event": "judgement", "item": "i"}
