"""`swarm chat`: the command that opens a conversation with a model."""

from __future__ import annotations

import click

from swarm.cli.generate import seeded_sampling
from swarm.cli.options import GenerationOptions, generation_options
from swarm.system.join import find_join_token
from swarm.system.process import user_errors


@click.command()
@click.argument("model", required=False)
@click.option("--system", help="What the model is told before the conversation.")
@generation_options(512)
def chat(options: GenerationOptions, model: str | None, system: str | None) -> None:
    """Talk to MODEL. /help in the chat lists its commands."""
    from swarm.cli.chat.repl import ChatRepl  # here, because Markdown takes a while to import

    with user_errors():
        token = find_join_token(options.join_token)
        sampled = seeded_sampling(options.temperature, options.seed)
        ChatRepl(options.connect, token, model, system, options.max_new_tokens, sampled, options.verify).run()
