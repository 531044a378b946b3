"""People, keys, visits and usage."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_people()
    _create_usage()


def _create_people() -> None:
    op.create_table(
        "people",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("email", sa.String(320)),
        sa.Column("subject", sa.String(600)),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("removed", sa.Double()),
        sa.PrimaryKeyConstraint("id", name="pk_people"),
        sa.UniqueConstraint("name", name="uq_people_name"),
        sa.UniqueConstraint("email", name="uq_people_email"),
        sa.UniqueConstraint("subject", name="uq_people_subject"),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("person_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("models", sa.JSON(none_as_null=True)),
        sa.Column("requests_per_minute", sa.Integer()),
        sa.Column("tokens_per_day", sa.BigInteger()),
        sa.Column("sessions", sa.Integer()),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double()),
        sa.Column("revoked", sa.Double()),
        sa.Column("last_used", sa.Double()),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name="fk_keys_person_id_people"),
    )
    op.create_index("ix_keys_person_id", "keys", ["person_id"])
    op.create_table(
        "visits",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("person_id", sa.Integer(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_visits"),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name="fk_visits_person_id_people"),
    )
    op.create_index("ix_visits_person_id", "visits", ["person_id"])


def _create_usage() -> None:
    op.create_table(
        "usage",
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("person_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("generated_tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("day", "person_id", "key_id", "model", name="pk_usage"),
    )
    op.create_table(
        "served",
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("server", sa.String(64), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("work", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("day", "server", "model", name="pk_served"),
    )


def downgrade() -> None:
    for table in ("served", "usage", "visits", "keys", "people"):
        op.drop_table(table)
