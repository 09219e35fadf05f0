"""One test for each hole that others had, and for those that every web app can have."""

import asyncio
import json
import random
import re
import string

import httpx
import pytest
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimtab.storage.database import Database
from trimtab.web.security import Tries
from trimtab.web.text import render, visible

from .kit import PASSWORD, Browser, World, judge

OPEN = {"/healthz", "/signin", "/join/{token}", "/api/v1/openapi.json"}
"""Pages for people who are not signed in."""
LEAST = {"/manage": "owner", "/adjudicate": "adjudicator"}
"""The role a path's start asks for; anything else is for everybody who is signed in."""


def routes(app) -> list[tuple[str, str]]:
    """Every path with every method, also of included routers."""
    paths = []

    def walk(them, prefix=""):
        for route in them:
            if isinstance(route, APIRoute):
                paths.extend((method, prefix + route.path) for method in route.methods)
            elif getattr(route, "original_router", None) is not None:
                walk(route.original_router.routes, prefix)
            elif hasattr(route, "routes") and route.routes and not getattr(route, "path", "").startswith("/static"):
                walk(route.routes, prefix)

    walk(app.routes)
    return sorted(set(paths))


def least(path: str) -> str:
    return next((role for start, role in LEAST.items() if path.startswith(start)), "annotator")


def test_every_route_asks_for_its_role(here: World, visit):
    """IDOR and missing checks (CVE-2026-22033): every route, by everybody who may not use it."""
    [uid] = here.pairs(1)
    nobody, annotator, adjudicator = visit(""), visit("annotator"), visit("adjudicator")
    every = routes(nobody.app)
    assert len(every) >= 38, every
    order = ["", "annotator", "adjudicator", "owner"]
    for method, path in every:
        if path in OPEN or path.startswith("/api/"):
            continue
        at = path.format(item=uid, number=1, format="trimtab", token="t")
        for role, client in (("", nobody), ("annotator", annotator), ("adjudicator", adjudicator)):
            if order.index(role) >= order.index(least(path)):
                continue
            if method == "GET":
                answer = client.get(at, follow_redirects=False, headers={"accept": "text/html"})
                assert (answer.status_code, answer.headers.get("location")) in [(303, "/signin"), (403, None)], path
            else:
                answer = client.fill(at) if role else client.post(at, data={})
                assert answer.status_code in (401, 403), (method, path, role, answer.status_code)
    for method, path in every:
        if path.startswith("/api/v1") and path != "/api/v1/openapi.json":
            assert annotator.request(method, path).status_code == 401, path  # a session is no token


def test_ones_own_only(here: World, visit):
    """Another person's judgement cannot be opened, changed or taken back by its number."""
    here.pairs(3)
    me = here.join("me").id
    receipt, _ = here.store.submit(me, judge(here.store.next(me), "1"))
    other = visit("annotator")
    other.get("/work")
    assert other.get(f"/work?change={receipt.version}").status_code == 422
    assert other.submit("/work/undo", {"version": receipt.version}).status_code == 409
    form = judge(here.store.next(me), "2", version=receipt.version)
    here.store.next(me)
    assert other.submit("/work/submit", form.model_dump(mode="json")).status_code in (409, 422)
    assert "question" not in other.get("/history").text


def test_changes_need_the_token_of_the_session_and_our_own_origin(here: World, visit):
    [uid, *_] = here.pairs(2)
    owner = visit("owner")
    form = {"item": uid, "key": "test-key-1", "verdict": "skip"}
    owner.get("/work")
    for headers in ({}, {"X-CSRF-Token": "wrong"}, {"X-CSRF-Token": visit("annotator").csrf}):
        assert owner.post("/work/submit", json=form, headers=headers).status_code == 403
    good = {"X-CSRF-Token": owner.csrf}
    for other in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        assert owner.post("/work/submit", json=form, headers=good | other).status_code == 403
        assert owner.post("/signin", data={"name": "x", "password": "y"}, headers=other).status_code == 403
    assert owner.post("/manage/settings", data={"title": "x"}).status_code == 403
    assert here.store.progress().done == 0 and here.store.config().title == "Preferences"
    assert owner.post("/work/submit", json=form, headers=good | {"Origin": "http://testserver"}).status_code == 200


def test_behind_a_proxy_the_public_address_counts(here: World):
    """The proxy talks to 127.0.0.1; pages, cookies and links belong to the address that people use."""
    here.join("olga", "owner")
    owner = Browser(here.app(public_url="https://labels.example.org"), base_url="http://127.0.0.1:8765")
    public, other = {"Origin": "https://labels.example.org"}, {"Origin": "https://evil.example"}
    form = {"name": "olga", "password": PASSWORD}
    assert owner.post("/signin", data=form, headers=other).status_code == 403
    answer = owner.post("/signin", data=form, headers=public, follow_redirects=False)
    assert "Secure" in answer.headers["set-cookie"]
    owner.headers["Cookie"] = answer.headers["set-cookie"].split(";")[0]  # as over HTTPS
    page = owner.learn().fill("/manage/invitations", role="annotator")
    assert "https://labels.example.org/join/" in page.text


def test_host_names_are_checked(visit):
    for host in ("evil.example", "evil.example:80", "", "[::1", "127.0.0.1.evil.example"):
        assert visit("").get("/signin", headers={"Host": host}).status_code == 400, host


def test_a_session_is_never_the_one_an_attacker_knows(here: World, visit):
    """Session fixation: signing in gives a new secret, signing out ends it, a new password ends all."""
    client = visit("")
    here.join("victim", "owner")
    client.cookies.set(client.app.state.cookie, "chosen-by-somebody-else")
    client.sign_in("victim")
    first = client.cookies.get(client.app.state.cookie, domain="testserver.local") or client.cookies.jar._cookies  # pyright: ignore
    assert here.people.session("chosen-by-somebody-else") is None
    assert first != "chosen-by-somebody-else"
    person = next(p for p in here.people.everybody() if p.name == "victim")
    session = here.people.sign_in("victim", PASSWORD)
    here.people.sign_out(session)
    assert here.people.session(session) is None
    session = here.people.sign_in("victim", PASSWORD)
    reset = here.people.invite("annotator", by=person.id, person=person.id)
    here.people.accept(reset, name="", password="another password")
    assert here.people.session(session) is None
    later = here.people.sign_in("victim", "another password")
    here.clock.now += 15 * 86400
    assert here.people.session(later) is None


def test_cookies_and_headers(here: World, visit):
    here.join("olga", "owner")
    answer = visit("").post("/signin", data={"name": "olga", "password": PASSWORD}, follow_redirects=False)
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "Secure" not in cookie
    secure = Browser(here.app(public_url="https://labels.example.org"))
    answer = secure.post("/signin", data={"name": "olga", "password": PASSWORD}, follow_redirects=False)
    assert "Secure" in answer.headers["set-cookie"]
    for path in ("/signin", "/nowhere", "/static/app.js", "/api/v1/status"):
        headers = visit("").get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert "content-security-policy-report-only" not in headers  # CVE-2025-47783: it only reported
        assert headers["x-content-type-options"] == "nosniff"


def test_secrets_are_nowhere(here: World, visit):
    """Tokens, passwords and links are not in the database, in pages, exports or the API."""
    owner = visit("owner")
    page = owner.fill("/manage/tokens", name="ci", scope="read").text
    token = re.findall(r"tt_[\w-]{20,}", page)[0]
    page = owner.fill("/manage/invitations", role="annotator").text
    link = re.findall(r"/join/([\w-]{20,})", page)[0]
    again = (
        owner.get("/manage/tokens").text + owner.get("/manage/people").text + owner.get("/manage/export/trimtab").text
    )
    session = here.people.sign_in("owner 1", PASSWORD)
    here.database.backup(path := here.database_folder() / "copy.db")
    stored = path.read_bytes()
    for secret in (token, link, PASSWORD, session):
        assert secret not in again and secret.encode() not in stored
    assert owner.get(f"/api/v1/status?token={token}").status_code == 401  # never in an address
    assert owner.get("/api/v1/status", headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_links_work_once_and_expire(here: World, visit):
    client = visit("")
    token = here.people.invite("annotator", by=None)
    assert client.get(f"/join/{token}").status_code == 200  # a preview of a chat program does not use it up
    assert client.post(f"/join/{token}", data={"name": "a", "password": "short"}).status_code == 422
    assert client.post(f"/join/{token}", data={"name": "a\u202e", "password": PASSWORD}).status_code == 422
    assert (
        client.post(f"/join/{token}", data={"name": "a", "password": PASSWORD}, follow_redirects=False).status_code
        == 303
    )
    assert "used already" in client.get(f"/join/{token}", headers={"accept": "text/html"}).text
    late = here.people.invite("annotator", by=None, days=1)
    here.clock.now += 86401
    assert "has expired" in client.get(f"/join/{late}").text
    assert "not known" in client.get("/join/guess").text
    first, second = here.people.first_owner(), here.people.first_owner()
    assert first and second and "not known" in client.get(f"/join/{first}").text  # only the newest works


def test_there_is_no_way_in_without_an_invitation(here: World, visit):
    """No open sign-up, no default password (and no hard-coded key, CVE-2023-43791: there is no key)."""
    client = visit("")
    for name in ("admin", "owner", "root", ""):
        for password in ("admin", "password", "", "trimtab"):
            client.app.middleware_stack = None  # a fresh count of tries  # pyright: ignore
            assert client.post("/signin", data={"name": name, "password": password}).status_code == 403
    for path in ("/signup", "/register", "/user/signup"):
        assert client.get(path).status_code == 404


def test_guessing_is_slowed_down(visit, here: World):
    client = visit("")
    answers = [client.post("/signin", data={"name": "x", "password": "y"}).status_code for _ in range(12)]
    assert answers == [403] * 10 + [429] * 2
    now = [0.0]
    tries = Tries(clock=lambda: now[0])
    assert [tries.allow("a", 1, 60) for _ in range(2)] == [True, False]
    now[0] = 61
    assert tries.allow("a", 1, 60)


def _sign_in(app, name: str, password: str, address: str, **headers: str) -> int:
    client = Browser(app, client=(address, 1), headers=headers)
    return client.post("/signin", data={"name": name, "password": password}, follow_redirects=False).status_code


def test_an_office_signs_in_and_an_address_cannot_be_made_up(here: World):
    """Only failures count; X-Forwarded-For is believed from the proxy named on the command line, and nobody else."""
    from trimtab.web.server import server_config

    here.join("olga")
    assert [_sign_in(here.app(), "olga", PASSWORD, "10.0.0.1") for _ in range(12)] == [303] * 12
    direct, behind = server_config(here.app(), None), server_config(here.app(), "127.0.0.1")
    for config in (direct, behind):
        config.load()
    for config, last in ((direct, 429), (behind, 403)):
        answers = [
            _sign_in(config.loaded_app, f"x{n}", "y", "127.0.0.1", **{"X-Forwarded-For": f"10.0.0.{n}"})
            for n in range(11)
        ]
        assert answers == [403] * 10 + [last]


def test_one_name_is_not_guessed_from_many_addresses(here: World):
    here.join("olga")
    app = here.app()
    answers = [_sign_in(app, " OLGA", "y", f"10.0.0.{n}") for n in range(22)]
    assert answers == [403] * 20 + [429] * 2
    assert _sign_in(app, "other", "y", "10.0.0.99") == 403


def test_projects_on_one_host_keep_their_sessions_apart(here: World, tmp_path):
    other = World(Database(f"sqlite:///{tmp_path}/other.db"))
    assert here.app().state.cookie != other.app().state.cookie
    assert here.app().state.cookie == here.app().state.cookie
    other.database.close()


def test_without_a_token_nothing_is_read(here: World):
    read = 0

    async def body():
        nonlocal read
        for _ in range(100):
            read += 1
            yield b"x" * 10_000

    async def send() -> int:
        transport = httpx.ASGITransport(here.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
            return (await client.post("/api/v1/items", content=body())).status_code

    assert asyncio.run(send()) == 401
    assert read == 0


def test_numbers_and_characters_that_a_database_cannot_hold(world: World):
    world.join("olga", "owner")
    owner, big = Browser(world.app(), raise_server_exceptions=False).sign_in("olga"), 2**53
    token = {"Authorization": f"Bearer {world.people.new_token('t', 'write', by=1)}"}
    for path in (f"/work?change={big}", f"/history?before={big}", f"/guidelines?version={big}"):
        assert owner.get(path).status_code == 422, path
    for path in (f"/manage/people/{big}", f"/manage/tokens/{big}/revoke", f"/manage/invitations/{big}/withdraw"):
        assert owner.fill(path).status_code == 422, path
    assert owner.get(f"/api/v1/items?after={big}", headers=token).status_code == 422
    assert owner.get("/adjudicate/item?id=%00").status_code == 422
    for path in ("batches", "guidelines", "invitations", "tokens"):
        fields = {"name": "\x00", "text": "\x00", "note": "\x00", "role": "annotator", "scope": "read"}
        assert owner.fill(f"/manage/{path}", **fields).status_code == 422, path
    form = {"item": "i", "key": "12345678\x00", "verdict": "skip"}
    assert owner.submit("/work/submit", form).status_code == 422
    assert owner.submit("/work/submit", form | {"key": "12345678", "guideline": "\x00"}).status_code == 422


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2f..%2fapp.py",
        "/static//etc/passwd",
        "/static/%00",
        "/static/",
    ],
)
def test_paths_do_not_leave_the_static_folder(visit, path):
    assert visit("").get(path).status_code in (400, 404, 405)


def test_an_import_cannot_read_files_outside_its_folder(here: World, tmp_path):
    from trimtab.errors import DataError
    from trimtab.web.exchange import import_folder

    (tmp_path / "secret.jsonl").write_text("{}")
    (tmp_path / "in").mkdir()
    manifest = {"format": "trimtab", "version": 1, "files": {"../secret.jsonl": {"sha256": "x"}}}
    (tmp_path / "in" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="cannot be read"):
        import_folder(here.store, tmp_path / "in")


def test_uploads_are_data_and_never_served(here: World, visit):
    """CVE-2024-23633: imported HTML served from the same origin. Here an upload becomes items or nothing."""
    owner = visit("owner")
    page = owner.post(
        "/manage/items",
        data={"csrf": owner.csrf},
        files={"file": ("x.html", b"<script>alert(1)</script>", "text/html")},
    )
    assert page.status_code == 200 and "not JSON" in page.text and "<script>alert" not in page.text
    assert owner.post("/manage/items", data={"csrf": owner.csrf}, files={"file": ("x", b"\xff\xfe")}).status_code == 422


def test_settings_names_and_reasons_are_escaped(here: World, visit):
    """CVE-2025-25296: stored XSS through settings."""
    bad = "<script>alert(1)</script>"
    owner = visit("owner")
    answer = owner.fill(
        "/manage/settings",
        **{"title": bad, "criteria": f"overall | preference | {bad}", "flag_reasons": bad, "overlap": "1"},
        **{
            k: str(v)
            for k, v in here.store.config()
            if isinstance(v, int | float) and not isinstance(v, bool) and k != "overlap"
        },
    )
    assert answer.status_code == 200
    assert here.store.config().title == bad
    here.pairs(2)
    here.join(f"x {bad}")
    owner.fill("/manage/batches", name=bad, priority="1")
    owner.fill("/manage/invitations", role="annotator", note=bad)
    owner.fill("/manage/guidelines", text=bad)
    for path in (
        "/work",
        "/manage",
        "/manage/items",
        "/manage/people",
        "/manage/settings",
        "/manage/guidelines",
        "/guidelines",
        "/signin",
    ):
        page = owner.get(path)
        assert page.status_code == 200 and bad not in page.text, path


def test_the_server_fetches_nothing(here: World, visit, monkeypatch):
    """CVE-2025-25297: no address in data, settings or requests makes the server open a connection."""
    import socket

    def refuse(*arguments, **options):
        raise AssertionError("a connection was opened")

    owner = visit("owner")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    url = "http://127.0.0.1:9/x"
    here.add({"prompt": url, "answers": [f"![]({url})", f"<img src={url}>"], "metadata": {"url": url}})
    for path in ("/work", "/manage", "/manage/export/trimtab", "/manage/items"):
        assert owner.get(path).status_code == 200
    assert "webhook" not in owner.get("/manage/settings").text


def test_spreadsheets_get_no_formulas(here: World):
    import csv
    import io

    from trimtab.web.exchange import _files

    here.pairs(5)
    me = here.join("me").id
    item = here.store.next(me)
    for sign in "=＝＠\n+":
        _, item = here.store.submit(me, judge(item, f"sign {ord(sign)}", comment=f'{sign}HYPERLINK("http://x")'))
    rows = list(csv.DictReader(io.StringIO(_files(here.store, "csv")["judgements.csv"].decode())))
    assert len(rows) == 5 and all(row["comment"].startswith("'") for row in rows)


def test_markdown_has_no_way_out():
    hostile = (
        "[a](javascript:alert(1)) [b](data:text/html,x) ![c](http://x/y.png) <b>d</b> <!-- e --> <script>f</script>\n\n"
        "[g]: http://x\n\n[g] <http://auto.link> &lt;script&gt; `<i>`\n\n    <u>code</u>\n"
    )
    html = str(render(hostile))
    assert set(re.findall(r"<(/?\w+)", html)) <= {"p", "/p", "span", "/span", "code", "/code", "pre", "/pre"}
    assert not re.search(r"(href|src|on\w+)\s*=", html.replace("&lt;", ""))
    assert "http://x/y.png" in html  # shown, not loaded


PIECES = [*"<>\"'&[]()!`*_#|-=\\ \n\tab:/", "javascript:", "<script>", "\u202e", "\x00"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
def test_markdown_never_makes_an_element_of_its_own(text):
    html = str(render(text))
    allowed = {
        "p",
        "span",
        "code",
        "pre",
        "em",
        "strong",
        "ul",
        "ol",
        "li",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "hr",
        "br",
    }
    allowed |= {"blockquote", "table", "thead", "tbody", "tr", "th", "td"}
    assert {name for name in re.findall(r"</?([a-zA-Z0-9]+)", html)} <= allowed
    assert "\u202e" not in html and "\x00" not in html


def test_invisible_characters_are_shown():
    assert visible("a\u202eb\x00c\r\nd") == "a⟦RLO⟧b⟦U+0000⟧c\nd"
    assert visible("\u061c\xad\u180e\u2028\u2029") == "⟦ALM⟧⟦SHY⟧⟦U+180E⟧⟦LSEP⟧⟦PSEP⟧"


def _junk(random_: random.Random, depth: int = 0):
    kinds = 9 if depth < 3 else 7
    match random_.randrange(kinds):
        case 0:
            return None
        case 1:
            return random_.choice([True, False])
        case 2:
            return random_.choice([0, -1, 1, 2**31, 2**63, -(2**70), 10**400])
        case 3:
            return random_.choice([0.5, -1.0, 1e308, 5e-324])
        case 4:
            return "".join(random_.choices(string.printable + "\x00\ud800\u202e😀", k=random_.randrange(30)))
        case 5:
            return random_.choice(["judged", "skip", "overall", "flag", "compare", "", "../..", "' OR 1=1 --"])
        case 6:
            return "x" * random_.choice([0, 300, 11_000])
        case 7:
            return [_junk(random_, depth + 1) for _ in range(random_.randrange(5))]
        case _:
            return {random_.choice(NAMES): _junk(random_, depth + 1) for _ in range(random_.randrange(6))}


NAMES = (
    "item key version verdict answers good first_wrong rewrite reason comment seconds criterion ranks strength scores "
    "of text items prompt completions steps batch overlap check metadata kind id messages role content guideline \x00 "
).split(" ")


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_fuzzed_bodies_give_no_500(world: World, count: int):
    world.pairs(3)
    world.join("olga", "owner")
    app = world.app()
    token = world.people.new_token("t", "write", by=1)
    uid = world.store.next(1).task.id  # pyright: ignore
    random_ = random.Random(7)
    seen: dict[int, int] = {}
    secret = world.people.sign_in("olga", PASSWORD)
    session = world.people.session(secret)
    assert session is not None

    def body(number: int, path: str) -> bytes:
        content = _junk(random_)
        if number % 3 and path != "/api/v1/items":
            content = {"item": uid, "key": f"k{number:09d}", random_.choice(NAMES): _junk(random_)}
        elif number % 3:
            content = {"items": [{"prompt": "q", "answers": ["a", "b"], random_.choice(NAMES): _junk(random_)}]}
        return bytes(random_.randrange(256) for _ in range(40)) if number % 11 == 0 else json.dumps(content).encode()

    async def send_all() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        headers = {"Content-Type": "application/json"}
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver", headers=headers) as client:
            client.cookies.set(app.state.cookie, secret)
            client.headers["X-CSRF-Token"] = session.csrf
            for number in range(count):
                path = ("/work/submit", "/work/undo", "/adjudicate/submit", "/api/v1/items")[number % 4]
                extra = {"Authorization": f"Bearer {token}"} if path.startswith("/api") else {}
                content = body(number, path)
                status = (await client.post(path, content=content, headers=extra)).status_code
                seen[status] = seen.get(status, 0) + 1
                assert status < 500, (path, content[:300])

    asyncio.run(send_all())
    assert seen[422] > count / 2, seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("examples", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_schemathesis_finds_nothing(here: World, visit, examples: int):
    """Every operation of the OpenAPI document, with bodies made from it, answers as the document says."""
    schemathesis = pytest.importorskip("schemathesis")
    here.pairs(3)
    app = visit("owner").app
    token = here.people.new_token("t", "write", by=1)
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app)
    checked = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if not operation.path.startswith("/api/"):
            continue

        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def run(case):
            case.call_and_validate(
                headers={"Authorization": f"Bearer {token}", "Host": "testserver"},
                excluded_checks=[schemathesis.checks.ignored_auth, schemathesis.checks.unsupported_method],
            )

        run()
        checked += 1
    assert checked >= 5
