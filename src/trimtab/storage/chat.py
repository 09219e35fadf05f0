"""Votes on the chat page: consent, exposures, one vote for each exposure, and withdrawal.

Nothing is stored about visitors who have not agreed to the terms. A visitor who agrees becomes a person with a
pseudonym and a secret, without a name or an address. Each answer shown is an exposure with a token that is good for one
vote. The answer's text stays in memory until the vote. Without a vote, only the exposure is stored, so that exposures
can be counted.

A vote is a judgement in the tables of the annotation app, so all code that reads labels also reads votes.

Events contain no text of visitors. What visitors wrote and read is in ``items``, where a withdrawal erases it. Events
stay, and an ``erasure`` event counts what was erased.
"""

import hashlib
import json
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, delete, func, insert, select, update

from trimtab.errors import ConflictError, DataError
from trimtab.records.annotation import Answer, Submission, Task
from trimtab.records.types import Completion, Message, Prompt, Source, content_id
from trimtab.storage.items import insert_items, recount
from trimtab.storage.labels import LabelStore
from trimtab.storage.queue import take_slot
from trimtab.storage.rows import add_event
from trimtab.storage.schema import events, exposures, items, judgements, people, visitors
from trimtab.storage.submissions import add_submission, put_judgement
from trimtab.storage.transaction import Transaction

REASONS = ("unjustified_refusal", "untrue", "unhelpful", "harmful", "style")
"""Reasons that a visitor can give for a bad answer."""
UNJUSTIFIED_REFUSAL = "unjustified_refusal"
"""This reason is stored as a flag, for a person to decide, and is never used for training."""
BOTH_BAD = "both_bad"
"""Reason of a tie between two bad answers."""
ERASED = "[withdrawn]"
"""Replaces every erased text."""
WAITING = 4096
"""Number of answers whose text waits in memory for a vote; with more, the oldest can no longer be voted on."""

Choice = Literal["left", "right", "tie", "both_bad"]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One answer, or two side by side, that a visitor was shown."""

    prompt: Prompt
    """The conversation."""
    completions: tuple[Completion, ...]
    """One answer; or two, in the order of the models, whatever the order on the screen."""
    order: tuple[int, ...]
    """``order[p]``: index of the completion at place p of the screen."""
    details: dict[str, Any]
    """Checkpoints, seeds, settings and guard version."""


@dataclass(frozen=True, kw_only=True)
class Ballot:
    """A vote."""

    token: str
    """Token of the exposure."""
    key: str
    """Chosen by the sender; the same vote sent again changes nothing."""
    good: bool | None = None
    """For one answer: True is good."""
    reason: str = ""
    """Why the answer is bad, one of :data:`REASONS`."""
    choice: Choice | None = None
    """For two answers: which one is better."""


@dataclass(frozen=True, kw_only=True)
class Withdrawal:
    """What a withdrawal erased, and where votes had gone."""

    votes: int
    """Number of votes."""
    exposures: int
    """Number of answers and pairs shown."""
    exports: tuple[str, ...]
    """Exports made since this person agreed, if they voted, with their times; models may have been trained on them."""
    runs: tuple[str, ...]
    """Rounds of runs that were trained on votes of this person, with their times."""


class ChatVotes:
    """Visitors, exposures and votes in a label store.

    Args:
        store: the label store.
        round_name: batch of the votes; each set of checkpoints has its own.
        cap: most votes of one person in a round.
        source: source of the votes, stored with each; ``simulated`` if a program plays the visitors.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        store: LabelStore,
        *,
        round_name: str,
        cap: int = 200,
        source: Source = "human",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store, self.round, self.cap, self._clock = store, round_name, cap, clock
        self._source: Source = source
        self._lock = threading.Lock()
        self._shown: OrderedDict[str, tuple[int, Shown]] = OrderedDict()  # token's digest: person, what was shown

    # Consent ------------------------------------------------------------------------------

    def consent(self, version: str, secret: str = "") -> str:
        """Store a visitor's agreement to this version of the terms; returns the secret that identifies the person.

        Args:
            version: hash of the terms.
            secret: secret of a visitor who agreed before, to these or earlier terms; person and secret stay the same.
        """
        with self.store.writing() as tx:
            row = tx.c.execute(_visitor_by_secret(secret)).first() if secret else None
            if row is not None:
                if row.consent != version:
                    tx.c.execute(update(visitors).where(visitors.c.person_id == row.person_id).values(consent=version))
                    tx.event("consent", {"version": version}, person=row.person_id)
                return secret
            secret, pseudonym = secrets.token_urlsafe(24), f"v-{secrets.token_hex(5)}"
            inserted = tx.c.execute(
                insert(people).values(
                    pseudonym=pseudonym, name=pseudonym, name_key=pseudonym, role="annotator", created_at=tx.now
                )
            )
            person = inserted.inserted_primary_key[0]  # pyright: ignore[reportOptionalSubscript]
            tx.c.execute(insert(visitors).values(person_id=person, secret=_digest(secret), consent=version))
            tx.event("consent", {"version": version}, person=person)
        return secret

    def visitor(self, secret: str, version: str) -> int | None:
        """The person with this secret; None: there is none, or they agreed to another version of the terms."""
        with self.store.database.read() as c:
            row = c.execute(_visitor_by_secret(secret)).first()
        return row.person_id if row is not None and row.consent == version else None

    def withdraw(self, secret: str) -> Withdrawal:
        """Erase the texts and votes of a person, and never store anything about them again.

        Raises:
            DataError: the secret is unknown.
        """
        with self.store.writing() as tx:
            row = tx.c.execute(select(visitors).where(visitors.c.secret == _digest(secret))).first()
            if row is None:
                raise DataError("this withdrawal code is unknown; check that it was copied whole")
            person = row.person_id
            first = tx.c.scalar(select(func.min(events.c.seq)).where(events.c.person_id == person))
            voted = tx.c.execute(
                select(items).join(judgements, judgements.c.item_id == items.c.id).where(
                    judgements.c.person_id == person
                )
            ).all()  # fmt: skip
            for item in voted:
                tx.c.execute(delete(judgements).where(judgements.c.item_id == item.id))
                erased = {"body": _erased(item), "retired": True, "open": False}
                tx.c.execute(update(items).where(items.c.id == item.id).values(**erased))
            exposed = tx.c.execute(
                update(exposures).where(exposures.c.person_id == person).values(withdrawn=True, used_at=tx.now)
            ).rowcount
            tx.c.execute(update(visitors).where(visitors.c.person_id == person).values(withdrawn_at=tx.now))
            tx.c.execute(update(people).where(people.c.id == person).values(state="removed"))
            tx.event("erasure", {"votes": len(voted), "exposures": exposed}, person=person)
            exported = select(events.c.at, events.c.body).where(events.c.kind == "export", events.c.seq > first)
            exports = [f"{_time(e.at)} {json.loads(e.body)['folder']}" for e in tx.c.execute(exported)] if voted else []
            collected = tx.c.execute(select(events.c.at, events.c.body).where(events.c.kind == "round")).all()
            rounds = [(json.loads(e.body), e.at) for e in collected]
            pseudonym = tx.person(person).pseudonym
            trained = {body["run"]: at for body, at in rounds if pseudonym in body["annotators"]}
            runs = [f"{_time(at)} {name}" for name, at in trained.items()]
        with self._lock:
            for token in [token for token, (owner, _) in self._shown.items() if owner == person]:
                del self._shown[token]
        return Withdrawal(votes=len(voted), exposures=exposed, exports=tuple(exports), runs=tuple(runs))

    # Votes --------------------------------------------------------------------------------

    def expose(self, person: int, version: str, shown: Shown) -> str | None:
        """Store an exposure, keep what was shown in memory, and return the token for a vote on it.

        If the person has withdrawn, or has not agreed to this version of the terms, nothing is stored and None is
        returned.
        """
        token = secrets.token_urlsafe(24)
        digest = _digest(token)
        with self.store.database.write() as c:
            if not _agrees_to_terms(c, person, version):
                return None
            c.execute(
                insert(exposures).values(
                    token=digest,
                    person_id=person,
                    round=self.round,
                    kind=_kind(shown),
                    shown_at=self._clock(),
                    withdrawn=False,
                )
            )
            with self._lock:
                self._shown[digest] = (person, shown)
                while len(self._shown) > WAITING:
                    self._shown.popitem(last=False)
        return token

    def vote(self, person: int, version: str, ballot: Ballot) -> bool:
        """Store a vote; it is on the disk when this returns. False: the same vote was stored before.

        Raises:
            DataError: the token is unknown, the vote does not fit what was shown, or the person has withdrawn or not
                agreed to this version of the terms.
            ConflictError: the token was used, the key was used for another vote, or the person has reached the cap.
        """
        digest = content_id(_digest(ballot.token), ballot.good, ballot.reason, ballot.choice)
        with self.store.writing() as tx:
            if not _agrees_to_terms(tx.c, person, version):
                raise DataError("votes are stored only for people who agreed to the terms; agree on the page first")
            query = select(events.c.body).where(events.c.person_id == person, events.c.key == ballot.key)
            if (earlier := tx.c.execute(query).first()) is not None:
                if json.loads(earlier.body).get("digest") != digest:
                    raise ConflictError(f"the key {ballot.key!r} was used for another vote; use a new one")
                return False
            row = tx.c.execute(
                select(exposures).where(exposures.c.token == _digest(ballot.token), exposures.c.person_id == person)
            ).first()
            if row is None:
                raise DataError("this vote is about an answer that you were not shown")
            if row.used_at is not None:
                raise ConflictError("there is a vote on this answer already; a token is good for one")
            with self._lock:
                _, shown = self._shown.get(row.token, (person, None))
            if shown is None:
                raise DataError("this answer is too old, or the server was started again since; ask again to vote")
            if self._votes(tx, person) >= self.cap:
                raise ConflictError(f"you gave {self.cap} votes in this round, which is the most that one person may")
            self._store(tx, person, row, shown, ballot, digest)
        with self._lock:
            self._shown.pop(row.token, None)
        return True

    def counts(self) -> dict[str, int]:
        """Counts of this round: answers and pairs shown, and votes on them."""
        query = select(exposures.c.kind, func.count(), func.count(exposures.c.used_at)).where(
            exposures.c.round == self.round, exposures.c.withdrawn.is_(False)
        )
        with self.store.database.read() as c:
            rows = {kind: (exposed, voted) for kind, exposed, voted in c.execute(query.group_by(exposures.c.kind))}
        (answers, thumbs), (pairs, choices) = rows.get("thumbs", (0, 0)), rows.get("compare", (0, 0))
        return {"answers_shown": answers, "thumbs": thumbs, "pairs_shown": pairs, "choices": choices}

    def _votes(self, tx: Transaction, person: int) -> int:
        query = select(func.count()).where(
            exposures.c.person_id == person, exposures.c.round == self.round, exposures.c.used_at.is_not(None)
        )
        return tx.c.scalar(query) or 0

    def _store(self, tx: Transaction, person: int, row: Row[Any], shown: Shown, ballot: Ballot, digest: str) -> None:
        consent = tx.c.scalar(select(visitors.c.consent).where(visitors.c.person_id == person))
        task = Task.of(
            shown.prompt,
            shown.completions,
            kind=row.kind,
            id=f"chat-{row.id}-{content_id(row.token)[:8]}",
            batch=self.round,
            overlap=1,
            metadata=shown.details | {"order": list(shown.order), "consent": consent},
        )
        submission = Submission(
            id=secrets.token_hex(12),
            task=task.id,
            annotator=tx.person(person).pseudonym,
            source=self._source,
            seconds=round(tx.now - row.shown_at, 2),
            created_at=datetime.fromtimestamp(tx.now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            **_vote_fields(shown, ballot),
        )
        insert_items(tx, [task], tx.config)
        item = tx.item(task.id)
        take_slot(tx, item.id)
        seq = add_submission(tx, "judgement", submission, digest, person=person, item=item, key=ballot.key)
        put_judgement(tx, seq, submission, item=item, person=person, replaces=None)
        recount(tx, tx.item(task.id))
        tx.c.execute(update(exposures).where(exposures.c.id == row.id).values(used_at=tx.now))


def record_export(store: LabelStore, folder: str, format: str) -> None:
    """Record that the labels were exported, so that a withdrawal can report where votes went."""
    with store.database.write() as c:
        add_event(c, store.clock(), "export", {"folder": folder, "format": format}, person=None)


def record_round(store: LabelStore, run: str, annotators: Collection[str]) -> None:
    """Record that a round of a run is trained on votes of these people, so that a withdrawal can report it."""
    with store.database.write() as c:
        add_event(c, store.clock(), "round", {"run": run, "annotators": sorted(annotators)}, person=None)


def _visitor_by_secret(secret: str) -> Select[Any]:
    return select(visitors).where(visitors.c.secret == _digest(secret), visitors.c.withdrawn_at.is_(None))


def _agrees_to_terms(c: Connection, person: int, version: str) -> bool:
    """Whether a person agrees to these terms now, in the transaction that is about to store something about them."""
    query = select(visitors.c.consent).where(visitors.c.person_id == person, visitors.c.withdrawn_at.is_(None))
    return c.scalar(query) == version


def _kind(shown: Shown) -> Literal["thumbs", "compare"]:
    return "thumbs" if len(shown.completions) == 1 else "compare"


def _vote_fields(shown: Shown, ballot: Ballot) -> dict[str, Any]:
    """The fields of a submission that contain the vote."""
    if any(shown.details.get("blocked", ())):
        if ballot.good is not False or ballot.reason != UNJUSTIFIED_REFUSAL or ballot.choice is not None:
            raise DataError(
                f"the guard blocked this answer; the only vote on it is good: false, reason {UNJUSTIFIED_REFUSAL}"
            )
        return {"verdict": "flag", "reason": UNJUSTIFIED_REFUSAL}
    if _kind(shown) == "thumbs":
        if ballot.good is None or ballot.choice is not None:
            raise DataError("a vote on one answer says good: true or false, and no choice")
        if ballot.reason and (ballot.good or ballot.reason not in REASONS):
            raise DataError(f"reason {ballot.reason[:40]!r}: a bad answer takes one of {', '.join(REASONS)}")
        if ballot.reason == UNJUSTIFIED_REFUSAL:
            return {"verdict": "flag", "reason": UNJUSTIFIED_REFUSAL}
        return {"verdict": "judged", "good": ballot.good, "reason": ballot.reason}
    if ballot.choice is None or ballot.good is not None or ballot.reason:
        raise DataError("a vote on two answers says choice: left, right, tie or both_bad, and nothing else")
    ranks = {"left": (0, 1), "right": (1, 0)}.get(ballot.choice, (0, 0))
    reason = BOTH_BAD if ballot.choice == "both_bad" else ""
    return {"verdict": "judged", "shown_order": shown.order, "answers": (Answer(ranks=ranks),), "reason": reason}


def _erased(item: Row[Any]) -> str:
    task = Task.model_validate_json(item.body)
    prompt = Prompt(id=f"withdrawn-{item.id}", messages=(Message(role="user", content=ERASED),))
    answers = tuple(c.model_copy(update={"text": ERASED}) for c in task.completions)
    return task.model_copy(update={"prompt": prompt, "completions": answers}).model_dump_json(exclude_defaults=True)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
