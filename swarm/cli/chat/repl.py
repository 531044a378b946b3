"""Chat loop of `swarm chat`: lines from the terminal, answers as they come, commands that begin with `/`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from rich.console import Console
from rich.table import Table

from swarm.chat_templates import ChatTemplate, detect_template
from swarm.cli import generate, status
from swarm.cli.chat import conversation
from swarm.cli.chat.conversation import Conversation
from swarm.cli.chat.markdown import MarkdownWriter, until_stop
from swarm.client.client import ClientSession, SamplingOptions, ServedModel, SwarmClient
from swarm.errors import BadRequest, SwarmError
from swarm.tokenizer import Tokenizer

MAX_SESSION_TOKENS = 8192  # tokens of a session


@dataclass(frozen=True)
class ConnectedModel:
    """A model that answers, and the session that carries the conversation with it: a turn costs only its new tokens.

    Attributes:
        template: for a model that comes without one.
    """

    client: SwarmClient
    model: ServedModel
    tokenizer: Tokenizer
    template: ChatTemplate | None
    session: ClientSession
    stop_ids: tuple[int, ...]

    @classmethod
    def connect(cls, client: SwarmClient, name: str | None) -> Self:
        """Open a session with a model of the swarm; without a name, with the only one.

        Raises:
            SwarmError: the swarm does not serve it, or it has no tokenizer.
        """
        model = generate.pick_model(client, name)
        tokenizer = generate.require_tokenizer(client, model.name)
        stops, template = set(tokenizer.stop_ids), None
        if not tokenizer.has_chat_template:
            vocabulary = tokenizer.fast.get_vocab()
            template = detect_template(vocabulary)
            stops |= {vocabulary[token] for token in (template.end,) if token in vocabulary}
        session = client.session(model.name, min(model.context_length or MAX_SESSION_TOKENS, MAX_SESSION_TOKENS))
        return cls(client, model, tokenizer, template, session, tuple(sorted(stops)))

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of the conversation so far."""
        extra: dict[str, Any] = {"chat_template": self.template.text} if self.template else {}
        return self.tokenizer.chat(messages, **extra)

    def __str__(self) -> str:
        servers = ", ".join(f"{server.name} {server.start}:{server.end}" for server in self.model.servers)
        form = f", asked in the form of {self.template.family}" if self.template else ""
        return f"{self.model.name} on {servers}{form}"


class ChatRepl:
    """Chat loop: reads lines, answers them through one session, and carries out commands that begin with `/`.

    Args:
        connect: opens the swarm of a join token; it is closed when the chat leaves it.
        sampling: what else than the stop ids decides about an answer.
        verify: how many parts of each answer are computed anew by other servers.
        answers, remarks: where the two go.
    """

    def __init__(
        self,
        connect: Callable[[str], SwarmClient],
        join: str,
        model: str | None,
        system: str | None,
        new: int,
        sampling: SamplingOptions,
        verify: int = 0,
        answers: Console | None = None,
        remarks: Console | None = None,
    ) -> None:
        self._connect = connect
        self._new = new
        self._sampling = sampling
        self._verify = verify
        self._answers = answers or Console()
        self._remarks = remarks or Console(stderr=True, highlight=False)
        self._connected = self._connect_model(join, model)
        self._conversation = Conversation(self._connected.model.name, system or "")

    def run(self) -> None:
        """Read lines and answer them until the end of the input or /exit."""
        self._say(f"{self._connected}. /help lists the commands, Ctrl-C stops an answer.")
        try:
            while (line := self._read()) is not None:
                try:
                    self._run_command(line)
                except SwarmError as error:
                    self._say(f"error: {error}")
        finally:
            self._connected.session.close()
            self._connected.client.close()

    def _run_command(self, line: str) -> None:
        if not line.startswith("/"):
            if line:
                self._answer(line)
            return
        name, _, rest = line[1:].partition(" ")
        command = getattr(self, f"do_{name or 'help'}", None)
        if command is None:
            raise BadRequest(f"there is no command /{name}; /help lists them")
        wants = [p for p in inspect.signature(command).parameters.values() if p.default is p.empty]
        if wants and not rest.strip():
            raise BadRequest(f"/{name} needs a {wants[0].name}")
        command(rest.strip()) if inspect.signature(command).parameters else command()

    # --- the commands, as /help lists them ---------------------------------------------------------------------------

    def do_help(self) -> None:
        """This list."""
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, command in inspect.getmembers(self, inspect.ismethod):
            if name.startswith("do_"):
                arguments = "".join(f" {p.name.upper()}" for p in inspect.signature(command).parameters.values())
                table.add_row(f"/{name[3:]}{arguments}", inspect.getdoc(command))
        table.add_row("/exit", "Leave; so does the end of the input.")
        self._remarks.print(table)

    def do_peers(self) -> None:
        """Who serves which blocks."""
        self._remarks.print(status.status_table(self._connected.client.models(), self._connected.client.view))

    def do_connect(self, token: str) -> None:
        """Go on with the swarm of another join token."""
        old, self._connected = self._connected, self._connect_model(token, None)
        old.session.close()
        old.client.close()
        self._say(f"{self._connected}")

    def do_model(self, name: str = "") -> None:
        """What answers; with a name, what answers from now on."""
        if name:
            old, self._connected = self._connected, ConnectedModel.connect(self._connected.client, name)
            old.session.close()
        self._say(f"{self._connected}")

    def do_system(self, text: str = "") -> None:
        """What the model is told before the conversation; with a text, from now on."""
        self._conversation.system = text or self._conversation.system
        self._say(self._conversation.system or "(nothing)")

    def do_clear(self) -> None:
        """A new conversation."""
        self._conversation.messages.clear()

    def do_save(self, name: str) -> None:
        """Keep the conversation under a name."""
        self._say(f"saved in {conversation.save(self._conversation, name)}")

    def do_load(self, name: str = "") -> None:
        """Go on with a conversation that was saved; without a name, list them."""
        if not name:
            self._say(", ".join(conversation.saved()) or "(nothing was saved)")
            return
        self._conversation = conversation.load(name)
        self._say(f"{len(self._conversation)} messages, made with {self._conversation.model}")

    # --- on the way --------------------------------------------------------------------------------------------------

    def _connect_model(self, join: str, model: str | None) -> ConnectedModel:
        client = self._connect(join)
        try:
            return ConnectedModel.connect(client, model)
        except BaseException:
            client.close()
            raise

    def _answer(self, question: str) -> None:
        connected = self._connected
        ids = connected.prompt(self._conversation.prompt(question))
        sampling = SamplingOptions(**{**self._sampling, "stop_ids": connected.stop_ids})
        options = generate.with_logprobs(sampling, self._verify)
        pieces = generate.continue_text(connected.session, connected.tokenizer, ids, self._new, options)
        said: list[str] = []
        with MarkdownWriter(self._answers) as writer, suppress(KeyboardInterrupt):
            for piece in until_stop(pieces, connected.template.stop if connected.template else ""):
                said.append(piece)
                writer.write(piece)
        self._conversation.model = connected.model.name
        self._conversation.add(question, "".join(said).strip())
        generate.verify_answer(connected.session, self._verify)

    def _read(self) -> str | None:
        with suppress(EOFError, KeyboardInterrupt):
            line = input("> " if sys.stdin.isatty() else "").strip()
            return None if line in ("/exit", "/quit") else line
        return None

    def _say(self, text: str) -> None:
        self._remarks.print(text, markup=False)
