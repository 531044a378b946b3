"""The gateway: OpenAI's REST API over a swarm, and a chat page."""
