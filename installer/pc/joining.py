"""The start-menu entry `Add this PC to a swarm`: asks for the join token and the model, then serves."""

from __future__ import annotations

import getpass
import os
import subprocess

from pc import server, task
from pc.changes import Changes
from pc.failure import ExitCode, SetupFailure
from pc.layout import Layout
from pc.log import Log


def user() -> str:
    """As Task Scheduler names people: `DOMAIN\\name`."""
    domain = os.environ.get("USERDOMAIN", "")
    return f"{domain}\\{getpass.getuser()}" if domain else getpass.getuser()


def read_token(text: str) -> str:
    """The join token in what was pasted or in a file.

    Raises:
        SetupFailure: there is none, or it is damaged.
    """
    from routing.security import JoinToken, SecurityError

    token = text.strip().removeprefix("join:").strip()
    try:
        JoinToken.parse(token)
    except SecurityError as error:
        raise SetupFailure(ExitCode.USAGE, str(error)) from error
    return token


def become_server(layout: Layout, token: str, model: str, service: str, log: Log) -> None:
    """Keep the token on this machine; with `service` also make the task that serves.

    Raises:
        SetupFailure: the token is none, or Windows refuses the task.
    """
    from swarm.models.catalogue import DEFAULT_MODEL
    from swarm.system import home
    from swarm.system.join import save_join_token

    token = read_token(token)
    save_join_token(token)
    log("the join token is kept, readable by you only")
    if service:
        server.configure(home.home(), token, model or DEFAULT_MODEL)
        task.create(layout, user(), home.home(), service == "boot")
        changes = Changes.load(layout)
        changes.task = True
        changes.save(layout)
        started = task.start()
        since = "from now on" if started else "from the next start on"
        log(f"the task {task.NAME!r} serves {model or DEFAULT_MODEL} {since}")


def ask(layout: Layout, log: Log) -> int:
    """The conversation in the console; returns an exit code."""
    from swarm.models.catalogue import DEFAULT_MODEL
    from swarm.system import home

    print("This PC will serve a part of a model to a swarm: give it some of its memory and computing time.")
    print("The owner of the swarm makes a join token for you with:  swarm token create --uses 1\n")
    token = read_token(input("Join token (paste it, then Enter): "))
    model = input(f"Model (as your swarm calls it) [{DEFAULT_MODEL}]: ").strip() or DEFAULT_MODEL
    always = input("Serve whenever you log on to Windows? [y/N]: ").strip().lower() in ("y", "yes")
    become_server(layout, token, model, "logon" if always else "", log)
    if always:
        print(f"What it does: {server.folder(home.home()) / 'server.log'}")
        print(f'To stop it for good: schtasks /Delete /TN "{task.NAME}"')
        return 0
    print("Serving until Ctrl-C or until this window is closed.\n")
    environment = {**os.environ, "SWARM_JOIN": token}
    return subprocess.call([str(layout.scripts / "swarm.exe"), "server", model], env=environment)
