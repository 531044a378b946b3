"""Tools that other people use, each with a real task through a real gateway: `python -m tests.clients.run`."""
