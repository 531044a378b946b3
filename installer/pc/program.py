"""The command line of `setup_steps.py`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pc import firewall, joining, options, packages, removal, search_path, server, task
from pc.changes import Changes
from pc.failure import ExitCode, SetupFailure
from pc.layout import Layout
from pc.log import Log


def main(arguments: list[str]) -> int:
    """Returns an exit code, see `ExitCode`. The reason of a failure is also left where the setup program reads it."""
    given = _parser().parse_args(arguments)
    layout = Layout.here()
    log = Log(given.log)
    try:
        if given.step == "install":
            return _install(layout, given, log)
        if given.step == "uninstall":
            return _uninstall(layout, given, log)
        if given.step == "join":
            return joining.ask(layout, log)
        return server.serve(given.home)
    except SetupFailure as failure:
        return _failed(failure.code, str(failure), given.reason, log)
    except (KeyboardInterrupt, EOFError):
        return 1
    except OSError as error:
        return _failed(ExitCode.PACKAGES, f"{error.strerror or error}: {error.filename or ''}", given.reason, log)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Steps of the setup program of layerswarm.")
    parser.add_argument("--log", type=Path, help="a file to append to")
    parser.add_argument("--reason", type=Path, help="a file for the one message that people see")
    steps = parser.add_subparsers(dest="step", required=True)
    install = steps.add_parser("install", help="after the files were unpacked and the virtual environment was made")
    install.add_argument("--version", required=True)
    install.add_argument("--offline", action="store_true", help="from the wheels in setup/wheels alone")
    install.add_argument("--silent", action="store_true", help="no user is there to answer questions")
    install.add_argument("--path", action="store_true", help="put the programs on the user's PATH")
    install.add_argument("--firewall", action="store_true", help="add the rule; SETUP_ARGUMENTS has all other options")
    uninstall = steps.add_parser("uninstall", help="before the files are deleted")
    uninstall.add_argument("--silent", action="store_true")
    uninstall.add_argument("--purge", action="store_true", help="models, chats, identities and settings too")
    steps.add_parser("join", help="add this PC to a swarm")
    serve = steps.add_parser("serve", help="what the scheduled task runs")
    serve.add_argument("--home", type=Path, required=True)
    return parser


def _failed(code: ExitCode, message: str, reason: Path | None, log: Log) -> int:
    log(message)
    if reason is not None:
        reason.write_text(message, encoding="utf-16")
    return code


def _install(layout: Layout, given: argparse.Namespace, log: Log) -> int:
    chosen = options.parse(os.environ.get("SETUP_ARGUMENTS", ""))
    token = chosen.join_file.read_text(encoding="utf-8-sig") if chosen.join_file else ""
    packages.install(layout, given.version, given.offline, chosen.torch, log)
    packages.copy_programs(layout)
    packages.remove_leftovers(layout)
    # From here on the programs are installed and run; what Windows refuses now is told, and they stay.
    changes = Changes.load(layout)
    problems = []
    if given.path:
        search_path.add(layout.bin)
        changes.path = True
        log(f"{layout.bin} is on your PATH")
    if given.firewall:
        program = getattr(sys, "_base_executable", sys.executable)
        command = firewall.add_command(program)
        log(f"firewall: {' '.join(command)}")
        if firewall.run_as_administrator(command, may_ask=not given.silent):
            changes.firewall = program
        else:
            problems.append(f"The firewall rule was not made. An administrator can: {' '.join(command)}")
    changes.save(layout)
    if token:
        try:
            joining.become_server(layout, token, chosen.model, chosen.service, log)
        except SetupFailure as failure:
            problems.append(str(failure))
    elif changes.task:
        task.start()  # after an update
    if problems:
        raise SetupFailure(ExitCode.PARTLY, "layerswarm is installed, with this exception: " + " ".join(problems))
    log("installed")
    return ExitCode.DONE


def _uninstall(layout: Layout, given: argparse.Namespace, log: Log) -> int:
    problems = removal.undo(layout, given.silent, log)
    if given.purge:
        removal.purge(removal.swarm_home(), log)
    if problems:
        raise SetupFailure(ExitCode.PARTLY, "layerswarm is removed, with this exception: " + " ".join(problems))
    return ExitCode.DONE
