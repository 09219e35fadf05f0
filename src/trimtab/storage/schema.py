"""Tables of the label database. ``events`` is the append-only source of truth; the rest is derived or bookkeeping.

::

    events ──── one row for each action of anybody; UNIQUE(person, key) makes a repeated request harmless
    judgements  which event is a person's current judgement of an item; UNIQUE(item, person)
    items       what is to be judged, and how many of its slots are taken
    leases      who is looking at what, until when
    people, invitations, sessions, tokens    who may do what; secrets are stored as SHA-256 only
    visitors    people of the chat page who agreed to have their votes stored
    exposures   the answers that visitors were shown, with a token that is good for one vote
    batches, cursors, guidelines, settings
"""

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData()

settings = Table(
    "settings",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

people = Table(
    "people",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("pseudonym", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("name_key", Text, nullable=False, unique=True),
    Column("role", Text, nullable=False),
    Column("password", Text),
    Column("state", Text, nullable=False, server_default="active"),
    Column("qualified", Boolean),
    Column("cohort", Text, nullable=False, server_default="{}"),
    Column("language", Text),
    Column("served", Integer, nullable=False, server_default="0"),
    Column("created_at", Float, nullable=False),
    CheckConstraint("role IN ('owner', 'adjudicator', 'annotator')", name="role_known"),
    CheckConstraint("state IN ('active', 'paused', 'removed', 'imported')", name="state_known"),
)

invitations = Table(
    "invitations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("token", Text, nullable=False, unique=True),
    Column("role", Text, nullable=False),
    Column("person_id", Integer, ForeignKey("people.id")),
    Column("note", Text, nullable=False, server_default=""),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("used_at", Float),
)

sessions = Table(
    "sessions",
    metadata,
    Column("token", Text, primary_key=True),
    Column("person_id", Integer, ForeignKey("people.id"), nullable=False),
    Column("csrf", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Index("sessions_of", "person_id"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("token", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float),
)

batches = Table(
    "batches",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("paused", Boolean, nullable=False, server_default=text("false")),
)

items = Table(
    "items",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("uid", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("role", Text),
    Column("batch_id", Integer, ForeignKey("batches.id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("overlap", Integer, nullable=False),
    Column("inherits", Boolean, nullable=False, server_default=text("false")),
    Column("taken", Integer, nullable=False, server_default="0"),
    Column("done", Integer, nullable=False, server_default="0"),
    Column("flags", Integer, nullable=False, server_default="0"),
    Column("open", Boolean, nullable=False),
    Column("retired", Boolean, nullable=False, server_default=text("false")),
    Column("disputed", Boolean, nullable=False, server_default=text("false")),
    Column("adjudicated", Boolean, nullable=False, server_default=text("false")),
    Column("created_at", Float, nullable=False),
    CheckConstraint("role IS NOT NULL OR taken BETWEEN 0 AND overlap", name="no_overshoot"),
    Index("items_queue", "batch_id", "open", "position"),
    Index("items_last", "batch_id", "position"),
    Index("items_disputed", "disputed"),
    Index("items_checks", "role", sqlite_where=text("role IS NOT NULL"), postgresql_where=text("role IS NOT NULL")),
)

events = Table(
    "events",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("kind", Text, nullable=False),
    Column("person_id", Integer, ForeignKey("people.id")),
    Column("item_id", Integer, ForeignKey("items.id")),
    Column("key", Text),
    Column("body", Text, nullable=False),
    UniqueConstraint("person_id", "key", name="idempotent"),
    Index("events_of_item", "item_id"),
    sqlite_autoincrement=True,
)

judgements = Table(
    "judgements",
    metadata,
    Column("seq", Integer, ForeignKey("events.seq"), primary_key=True),
    Column("item_id", Integer, ForeignKey("items.id"), nullable=False),
    Column("person_id", Integer, ForeignKey("people.id"), nullable=False),
    Column("verdict", Text, nullable=False),
    Column("seconds", Float),
    Column("passed", Boolean),
    Column("adjudication", Boolean, nullable=False),
    Column("at", Float, nullable=False),
    UniqueConstraint("item_id", "person_id", name="one_each"),
    Index("judgements_of", "person_id", "seq"),
)

leases = Table(
    "leases",
    metadata,
    Column("item_id", Integer, ForeignKey("items.id"), primary_key=True),
    Column("person_id", Integer, ForeignKey("people.id"), primary_key=True),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("live", Boolean, nullable=False),
    Column("draft", Text),
    Index("leases_of", "person_id", "live"),
    Index("leases_expiring", "live", "expires_at"),
)

cursors = Table(
    "cursors",
    metadata,
    Column("person_id", Integer, ForeignKey("people.id"), primary_key=True),
    Column("batch_id", Integer, ForeignKey("batches.id"), primary_key=True),
    Column("position", Integer, nullable=False),
)

guidelines = Table(
    "guidelines",
    metadata,
    Column("version", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("created_at", Float, nullable=False),
)

visitors = Table(
    "visitors",
    metadata,
    Column("person_id", Integer, ForeignKey("people.id"), primary_key=True),
    Column("secret", Text, nullable=False, unique=True),
    Column("consent", Text, nullable=False),
    Column("withdrawn_at", Float),
)

exposures = Table(
    "exposures",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("token", Text, nullable=False, unique=True),
    Column("person_id", Integer, ForeignKey("people.id"), nullable=False),
    Column("round", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("shown_at", Float, nullable=False),
    Column("used_at", Float),
    Column("withdrawn", Boolean, nullable=False),
    Index("exposures_of", "person_id", "round"),
)
