"""Migrations: how the tables came to be, one step after the other, for Alembic."""
