"""How alembic runs the migrations: inside the transaction that trimtab opened."""

from alembic import context

from trimtab.storage.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
