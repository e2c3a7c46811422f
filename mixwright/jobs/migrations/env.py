"""Alembic's entry: runs the migrations on the connection that ``database.upgrade`` opened."""

from __future__ import annotations

from alembic import context

from mixwright.jobs.database import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite changes a table by making a new one.
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
