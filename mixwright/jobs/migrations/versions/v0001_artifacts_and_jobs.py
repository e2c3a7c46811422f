"""Artifacts, their lineage and domains, and the job board."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "artifacts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("n_rows", sa.BigInteger(), nullable=False),
        sa.Column("n_tokens", sa.BigInteger(), nullable=True),
        sa.Column("selector", sa.String(64), nullable=True),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artifacts")),
        sa.UniqueConstraint("kind", "name", "version", name=op.f("uq_artifacts_kind_name_version")),
    )
    op.create_index(
        op.f("ix_artifacts_kind_created_at_name_version"), "artifacts", ["kind", "created_at", "name", "version"]
    )
    op.create_index(op.f("ix_artifacts_fingerprint"), "artifacts", ["fingerprint"])
    _create_artifact_details()
    _create_jobs()


def _create_artifact_details() -> None:
    op.create_table(
        "artifact_inputs",
        sa.Column("artifact_id", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("artifact_id", "position", name=op.f("pk_artifact_inputs")),
        sa.ForeignKeyConstraint(
            ["artifact_id"], ["artifacts.id"], ondelete="CASCADE", name=op.f("fk_artifact_inputs_artifact_id")
        ),
    )
    op.create_index(op.f("ix_artifact_inputs_kind_name_version"), "artifact_inputs", ["kind", "name", "version"])
    op.create_table(
        "artifact_domains",
        sa.Column("artifact_id", sa.BigInteger(), nullable=False),
        sa.Column("domain", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("artifact_id", "domain", name=op.f("pk_artifact_domains")),
        sa.ForeignKeyConstraint(
            ["artifact_id"], ["artifacts.id"], ondelete="CASCADE", name=op.f("fk_artifact_domains_artifact_id")
        ),
    )
    op.create_index(op.f("ix_artifact_domains_domain"), "artifact_domains", ["domain"])


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("request_fingerprint", sa.String(64), nullable=False),
        sa.Column("active_fingerprint", sa.String(64), nullable=True),
        sa.Column("inputs_state", sa.String(64), nullable=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("owner", sa.String(255), nullable=True),
        sa.Column("lease_until", _TIME, nullable=True),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("started_at", _TIME, nullable=True),
        sa.Column("finished_at", _TIME, nullable=True),
        sa.Column("progress", sa.JSON(), nullable=True),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("active_fingerprint", name=op.f("uq_jobs_active_fingerprint")),
    )
    op.create_index(op.f("ix_jobs_state_created_at"), "jobs", ["state", "created_at"])
    op.create_index(op.f("ix_jobs_created_at_id"), "jobs", ["created_at", "id"])
    op.create_index(op.f("ix_jobs_request_fingerprint"), "jobs", ["request_fingerprint"])


def downgrade() -> None:
    for table in ("jobs", "artifact_domains", "artifact_inputs", "artifacts"):
        op.drop_table(table)
