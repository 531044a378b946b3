"""The long-running programs: directory, server, router, and `swarm up`, which starts all of them on one machine."""
