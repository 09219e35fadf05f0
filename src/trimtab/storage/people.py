"""Accounts by invitation only: people, sessions, API tokens. Secrets are random, and stored as SHA-256."""

import hashlib
import json
import secrets
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from trimtab.errors import ConflictError, DataError
from trimtab.storage.database import Database
from trimtab.storage.form import whole_characters_or_refuse
from trimtab.storage.rows import add_event
from trimtab.storage.schema import invitations, people, sessions, tokens

RoleName = Literal["owner", "adjudicator", "annotator"]
ROLES: tuple[RoleName, ...] = ("annotator", "adjudicator", "owner")
"""From the fewest rights to the most; each role includes the rights of those before it."""
MIN_PASSWORD = 10
_SESSION = (
    select(people, sessions.c.csrf)
    .join(sessions, sessions.c.person_id == people.c.id)
    .where(sessions.c.token == bindparam("token"), sessions.c.expires_at > bindparam("now"))
)
SESSION_DAYS = 14
_DAY = 86400.0


@dataclass(frozen=True, kw_only=True)
class Person:
    """Someone who is signed in."""

    id: int
    """Row number."""
    name: str
    """Name as chosen; shown to owners only."""
    pseudonym: str
    """Name in judgements and exports."""
    role: RoleName
    """The person's rights."""
    state: str
    """``active``, ``paused``, ``removed`` or ``imported``."""
    language: str | None
    """Language of the interface; None: the browser's."""
    cohort: dict[str, str]
    """Groups the person named, all optional."""
    csrf: str = ""
    """CSRF token of the session."""

    def may(self, role: RoleName) -> bool:
        """True if the person's role includes this one."""
        return ROLES.index(self.role) >= ROLES.index(role)


@dataclass(frozen=True, kw_only=True)
class Invitation:
    """A link that has not been used."""

    id: int
    """Row number."""
    role: RoleName
    """Role of the new account."""
    person: str | None
    """Name of the person whose password it resets; None: a new account."""


class People:
    """Accounts of a project.

    Args:
        database: the label database.
        clock: seconds since 1970.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self.database = database
        self.clock = clock

    # Invitations --------------------------------------------------------------------------

    def invite(
        self, role: RoleName, *, by: int | None, person: int | None = None, note: str = "", days: float = 7
    ) -> str:
        """Create the secret of a link for a new account, or for a new password of ``person``. It works once."""
        token = secrets.token_urlsafe(32)
        now = self.clock()
        with self.database.write() as c:
            if person is not None:
                role = c.execute(select(people.c.role).where(people.c.id == person)).scalar_one()
            added = c.execute(
                insert(invitations).values(
                    token=_digest(token),
                    role=role,
                    person_id=person,
                    note=note,
                    created_at=now,
                    expires_at=now + days * _DAY,
                )
            )
            add_event(
                c,
                now,
                "invitation",
                {"role": role, "note": note, "id": added.inserted_primary_key[0]},  # pyright: ignore[reportOptionalSubscript]
                person=by,
            )
        return token

    def first_owner(self) -> str | None:
        """The secret of the link for the first owner; None if there is an owner. Earlier such links stop working."""
        with self.database.write() as c:
            if c.scalar(select(func.count()).where(people.c.role == "owner", people.c.state == "active")):
                return None
            c.execute(delete(invitations).where(invitations.c.role == "owner", invitations.c.used_at.is_(None)))
        return self.invite("owner", by=None, days=1)

    def invitation(self, token: str) -> Invitation:
        """The invitation behind a link.

        Raises:
            DataError: the link is unknown, used or expired.
        """
        with self.database.read() as c:
            row = self._invitation(c, token)
            name = None
            if row.person_id is not None:
                name = c.execute(select(people.c.name).where(people.c.id == row.person_id)).scalar_one()
        return Invitation(id=row.id, role=row.role, person=name)

    def accept(self, token: str, *, name: str, password: str, language: str | None = None) -> str:
        """Use a link: create the account or set the password. Returns the secret of a new session.

        Raises:
            DataError: the link does not work, or name or password cannot be used.
            ConflictError: the name is taken.
        """
        invitation = self.invitation(token)
        check_password(password)
        if invitation.person is None:
            name = check_name(name)
        hashed = _hasher().hash(password)  # deliberately slow, so before the transaction
        with self.database.write() as c:
            row = self._invitation(c, token)
            now = self.clock()
            c.execute(update(invitations).where(invitations.c.id == row.id).values(used_at=now))
            if row.person_id is not None:
                person = row.person_id
                c.execute(update(people).where(people.c.id == person).values(password=hashed))
                c.execute(delete(sessions).where(sessions.c.person_id == person))
                add_event(c, now, "password", {}, person=person)
            else:
                if c.execute(select(people.c.id).where(people.c.name_key == name_key(name))).first():
                    raise ConflictError("this name is taken; choose another one")
                added = c.execute(
                    insert(people).values(
                        pseudonym=f"a-{secrets.token_hex(5)}",
                        name=name,
                        name_key=name_key(name),
                        role=row.role,
                        password=hashed,
                        language=language,
                        created_at=now,
                    )
                )
                person = added.inserted_primary_key[0]  # pyright: ignore[reportOptionalSubscript]
                add_event(c, now, "joined", {"role": row.role}, person=person)
            return self._new_session(c, person)

    def open_invitations(self) -> list[dict[str, Any]]:
        """Links that can still be used (without their secrets)."""
        query = select(invitations).where(invitations.c.used_at.is_(None), invitations.c.expires_at > self.clock())
        with self.database.read() as c:
            return [dict(r._mapping) for r in c.execute(query.order_by(invitations.c.id))]

    def withdraw(self, invitation: int, *, by: int) -> None:
        """Invalidate a link."""
        with self.database.write() as c:
            c.execute(delete(invitations).where(invitations.c.id == invitation, invitations.c.used_at.is_(None)))
            add_event(c, self.clock(), "withdrawn", {"id": invitation}, person=by)

    def _invitation(self, c: Connection, token: str) -> Row[Any]:
        row = c.execute(select(invitations).where(invitations.c.token == _digest(token))).first()
        if row is None:
            raise DataError("this link is not known; check that it was copied whole, or ask for a new one")
        if row.used_at is not None:
            raise DataError("this link was used already; sign in instead, or ask for a new one")
        if row.expires_at <= self.clock():
            raise DataError("this link has expired; ask for a new one")
        return row

    # Sessions -----------------------------------------------------------------------------

    def sign_in(self, name: str, password: str) -> str:
        """Check name and password; returns the secret of a new session.

        Raises:
            DataError: name or password is wrong; the message does not say which.
        """
        name = "" if _unusable(name) else name
        with self.database.read() as c:
            row = c.execute(select(people).where(people.c.name_key == name_key(name))).first()
        valid = row is not None and row.password is not None and row.state in ("active", "paused")
        try:
            stored = str(row.password) if valid and row is not None else _unmatchable_hash()
            _hasher().verify(stored, "" if _unusable(password) else password)
        except (VerificationError, InvalidHashError):
            valid = False
        if not valid or row is None:
            raise DataError("name or password is wrong")
        with self.database.write() as c:
            return self._new_session(c, row.id)

    def change_password(self, person: int, *, old: str, new: str) -> str:
        """Change one's own password. All sessions end; returns the secret of a new one.

        Raises:
            DataError: the old password is wrong, or the new one cannot be used.
        """
        check_password(new)
        with self.database.read() as c:
            stored = c.scalar(select(people.c.password).where(people.c.id == person))
        try:
            _hasher().verify(stored or _unmatchable_hash(), "" if _unusable(old) else old)
        except (VerificationError, InvalidHashError):
            raise DataError("the current password is wrong") from None
        hashed = _hasher().hash(new)
        with self.database.write() as c:
            c.execute(update(people).where(people.c.id == person).values(password=hashed))
            c.execute(delete(sessions).where(sessions.c.person_id == person))
            add_event(c, self.clock(), "password", {}, person=person)
            return self._new_session(c, person)

    def session(self, token: str) -> Person | None:
        """The person whose session has this secret; None if it is unknown or expired, or the person was removed."""
        with self.database.read() as c:
            row = c.execute(_SESSION, {"token": _digest(token), "now": self.clock()}).first()
        return None if row is None or row.state not in ("active", "paused") else _person(row, row.csrf)

    def sign_out(self, token: str) -> None:
        """End a session."""
        with self.database.write() as c:
            c.execute(delete(sessions).where(sessions.c.token == _digest(token)))

    def _new_session(self, c: Connection, person: int) -> str:
        token, now = secrets.token_urlsafe(32), self.clock()
        c.execute(delete(sessions).where(sessions.c.expires_at <= now))
        c.execute(
            insert(sessions).values(
                token=_digest(token),
                person_id=person,
                csrf=secrets.token_urlsafe(24),
                created_at=now,
                expires_at=now + SESSION_DAYS * _DAY,
            )
        )
        return token

    # People -------------------------------------------------------------------------------

    def everybody(self) -> list[Row[Any]]:
        """All accounts."""
        with self.database.read() as c:
            return list(c.execute(select(people).order_by(people.c.id)).all())

    def change(
        self,
        person: int,
        *,
        by: int,
        role: RoleName | None = None,
        state: str | None = None,
        qualified: bool | None = None,
    ) -> None:
        """Change role or state, or qualify a person. A removed person's sessions end; their judgements stay.

        Raises:
            DataError: there is no such person.
            ConflictError: the project would have no owner.
        """
        values: dict[str, Any] = {
            k: v for k, v in (("role", role), ("state", state), ("qualified", qualified)) if v is not None
        }
        with self.database.write() as c:
            row = c.execute(select(people).where(people.c.id == person)).first()
            if row is None or row.state == "imported":
                raise DataError("there is no such person")
            if row.role == "owner" and ((role or "owner") != "owner" or (state or "active") != "active"):
                other_owners = select(func.count()).where(
                    people.c.role == "owner", people.c.state == "active", people.c.id != person
                )
                if not c.scalar(other_owners):
                    raise ConflictError("this is the last owner; make another person an owner first")
            if values:
                c.execute(update(people).where(people.c.id == person).values(**values))
                add_event(c, self.clock(), "person", {"person": person, **values}, person=by)
            if state == "removed":
                c.execute(delete(sessions).where(sessions.c.person_id == person))

    def profile(self, person: int, *, language: str | None, cohort: dict[str, str]) -> None:
        """Change one's own language and groups.

        The event does not store the groups' names, so that people can take them back.

        Raises:
            DataError: a group's name is too long or contains invalid characters.
        """
        groups = {k: check_name(v, what=k, most=60) for k, v in cohort.items() if v.strip()}
        for k, v in groups.items():
            if "=" in v:  # else it could pass for another group: submissions contain "language=…, region=…"
                raise DataError(f"{k}: {v!r} contains '='; write it without")
        with self.database.write() as c:
            c.execute(update(people).where(people.c.id == person).values(language=language, cohort=json.dumps(groups)))
            add_event(c, self.clock(), "profile", {"groups": sorted(groups)}, person=person)

    # API tokens ---------------------------------------------------------------------------

    def new_token(self, name: str, scope: str, *, by: int) -> str:
        """Create an API token (``read`` or ``write``); it is shown only once."""
        token, now = f"tt_{secrets.token_urlsafe(32)}", self.clock()
        with self.database.write() as c:
            c.execute(insert(tokens).values(token=_digest(token), name=check_name(name), scope=scope, created_at=now))
            add_event(c, now, "token", {"name": name, "scope": scope}, person=by)
        return token

    def tokens(self) -> list[Row[Any]]:
        """Tokens that were not revoked (without their secrets)."""
        with self.database.read() as c:
            return list(c.execute(select(tokens).where(tokens.c.revoked_at.is_(None)).order_by(tokens.c.id)).all())

    def revoke(self, token: int, *, by: int) -> None:
        """Revoke a token."""
        with self.database.write() as c:
            c.execute(update(tokens).where(tokens.c.id == token).values(revoked_at=self.clock()))
            add_event(c, self.clock(), "revoked", {"token": token}, person=by)

    def token_scope(self, token: str) -> str | None:
        """Scope of an API token; None if the token is unknown or revoked."""
        query = select(tokens.c.scope).where(tokens.c.token == _digest(token), tokens.c.revoked_at.is_(None))
        with self.database.read() as c:
            return c.scalar(query)


def check_password(password: str) -> None:
    """Refuse a password that is too short or cannot be stored.

    Raises:
        DataError: the password cannot be used; the message says what is required.
    """
    if len(password) < MIN_PASSWORD:
        raise DataError(f"the password needs {MIN_PASSWORD} characters or more")
    if len(password) > 1000:
        raise DataError("the password is longer than 1000 characters")
    whole_characters_or_refuse(password)


def check_name(name: str, *, what: str = "name", most: int = 60) -> str:
    """A name in the form in which it is stored: trimmed, composed, without control or direction characters.

    Raises:
        DataError: the name is empty, too long, or contains such characters.
    """
    whole_characters_or_refuse(name)
    name = unicodedata.normalize("NFKC", name).strip()
    if not 1 <= len(name) <= most:
        raise DataError(f"{what}: 1 to {most} characters, got {len(name)}")
    if any(unicodedata.category(ch) in ("Cc", "Cf", "Co", "Cs") for ch in name):
        raise DataError(f"{what}: control and direction characters are not allowed")
    return name


def _person(row: Row[Any], csrf: str) -> Person:
    return Person(
        id=row.id,
        name=row.name,
        pseudonym=row.pseudonym,
        role=row.role,
        state=row.state,
        language=row.language,
        cohort=json.loads(row.cohort),
        csrf=csrf,
    )


def name_key(name: str) -> str:
    """A name in the form in which it is compared."""
    return unicodedata.normalize("NFKC", name).strip().casefold()


def _unusable(text: str) -> bool:
    return "\x00" in text or len(text) > 1000 or any("\ud800" <= ch <= "\udfff" for ch in text)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


@cache
def _hasher() -> PasswordHasher:
    return PasswordHasher()


@cache
def _unmatchable_hash() -> str:
    """A hash that no password matches, so that an unknown name takes as long as a wrong password."""
    return _hasher().hash(secrets.token_urlsafe(32))
