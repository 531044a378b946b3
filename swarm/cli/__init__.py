"""The command line: `swarm` and its commands."""
