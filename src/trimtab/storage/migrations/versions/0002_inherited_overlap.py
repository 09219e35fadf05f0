"""Which items take the project's overlap; and no more "last used" of tokens, which nobody wrote."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("items", sa.Column("inherits", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    items = sa.table("items", sa.column("id"), sa.column("body"), sa.column("inherits"))
    connection = op.get_bind()
    rows = connection.execute(sa.select(items.c.id, items.c.body)).all()
    mine = [{"item": row.id} for row in rows if json.loads(row.body).get("overlap") is None]
    if mine:
        connection.execute(items.update().where(items.c.id == sa.bindparam("item")).values(inherits=True), mine)
    op.drop_column("tokens", "used_at")
