"""`python -m openai_api`: the same as `swarm-gateway`."""

from openai_api.cli import main

main()
