"""Env: what Alembic runs; on the connection that the caller has opened, in its transaction."""

from __future__ import annotations

from alembic import context

from openai_api.accounts.schema import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, transactional_ddl=True
)
with context.begin_transaction():
    context.run_migrations()
