"""Accounts: people, their keys, their limits, and usage."""
