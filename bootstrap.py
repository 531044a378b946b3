"""Bootstrap: makes `.venv` beside this file, installs the tested versions once, and runs the program from there.

Needs nothing but Python's standard library. It is written so that Pythons as old as 3.6 can read it: what they are told
is which version to install, not that a line is wrong. Its own words go to standard error; standard output belongs to
the program that it runs.
"""

import hashlib
import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

OLDEST, TOO_NEW = (3, 11), (3, 14)
ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
LOG = VENV / "bootstrap.log"
STAMP = VENV / "bootstrap.json"
WINDOWS = os.name == "nt"
SCRIPTS = VENV / ("Scripts" if WINDOWS else "bin")
PYTHON = SCRIPTS / ("python.exe" if WINDOWS else "python")
PETALS = ROOT / "backends" / "upstream" / "requirements.txt"
PAGE = ROOT / "chatbot-ui"
BUILT = ROOT / "openai_api" / "static" / "app"
NODE = 20  # the oldest version that builds the page
PYTORCH = "https://download.pytorch.org/whl/"

USAGE = """usage: python bootstrap.py up [arguments of 'swarm up']
       python bootstrap.py install
       python bootstrap.py test [arguments of pytest]
       python bootstrap.py petals

up       installs what is needed into .venv beside this file (about a minute, once), then runs 'swarm up':
         a directory, two servers and a chat page on this machine. 'up --help' lists its arguments.
install  only installs, and says where the programs are.
         Each of them also builds the chat page where Node.js 20 or newer is; without it a simpler page is served.
test     installs what the tests need too, then runs pytest.
petals   makes .venv-petals, where upstream Petals is installed, for 'swarm-server MODEL --backend petals'.
         It goes with older libraries, so it needs an environment of its own, and Python 3.11.

SWARM_TORCH_INDEX  the package index to take torch from, for example
                   %scu130 (NVIDIA) or %scpu (small)
""" % (PYTORCH, PYTORCH)  # noqa: UP031 - formatted as every Python can


class Failure(Exception):
    """A failed step: what went wrong and what to do about it, in one line for people."""


def main(args: "list[str]") -> int:
    """Do what the command line says; the exit code."""
    if not args or args[0] in ("-h", "--help") or args[0] not in ("up", "install", "test", "petals"):
        known = args[:1] in (["-h"], ["--help"])
        (sys.stdout if known else sys.stderr).write(USAGE)
        return 0 if known else 2
    try:
        check_python(sys.version_info[:2])
        if args[0] == "petals":
            use_petals()
        install({"test": "test", "petals": "petals"}.get(args[0], ""))
        if args[0] != "petals":
            build_page(again=args[0] == "install")
    except Failure as failure:
        say(f"bootstrap: {failure}")
        return 1
    except OSError as error:
        say(f"bootstrap: {explain(str(error))}")
        return 1
    except KeyboardInterrupt:
        say("bootstrap: stopped; the next run finishes the installation")
        return 130
    if args[0] == "install":
        say(f"the programs (swarm, swarm-server, swarm-directory, swarm-gateway, swarm-client) are in {SCRIPTS}")
        return 0
    if args[0] == "petals":
        say(f"swarm-server with --backend petals is in {SCRIPTS}")
        return 0
    if args[0] == "test":
        os.chdir(str(ROOT))
        return run([str(PYTHON), "-m", "pytest", *args[1:]])
    return run([str(SCRIPTS / ("swarm.exe" if WINDOWS else "swarm")), *args])


def check_python(version: "tuple[int, int]") -> None:
    """Refuse a Python that is too old or too new, and say which one to install."""
    if OLDEST <= version < TOO_NEW:
        return
    have = "{}.{}".format(*version)
    newest = f"{TOO_NEW[0]}.{TOO_NEW[1] - 1}"
    start = "py -3.12 bootstrap.py up" if WINDOWS else "python3.12 bootstrap.py up"
    raise Failure(
        f"this is Python {have}; Python 3.11 to {newest} is needed. Install one (https://www.python.org/downloads/) "
        f"and start this with it, for example: {start}"
    )


def use_petals() -> None:
    """Make the environment of upstream Petals the one that this program works on from here on."""
    global VENV, LOG, STAMP, SCRIPTS, PYTHON
    if sys.version_info[:2] != (3, 11):
        have = "{}.{}".format(*sys.version_info[:2])
        start = "py -3.11 bootstrap.py petals" if WINDOWS else "python3.11 bootstrap.py petals"
        raise Failure(f"this is Python {have}; what upstream Petals goes with is made for 3.11. Start: {start}")
    VENV = ROOT / ".venv-petals"
    LOG, STAMP = VENV / "bootstrap.log", VENV / "bootstrap.json"
    SCRIPTS = VENV / SCRIPTS.name
    PYTHON = SCRIPTS / PYTHON.name


def install(extra: str) -> None:
    """Bring the environment to the versions that are tested; return at once where it has them."""
    index = os.environ.get("SWARM_TORCH_INDEX", "")
    stamp = read_stamp()
    if is_current(stamp, wanted(), extra, index) and PYTHON.exists():
        return
    started = time.monotonic()
    STAMP.unlink(missing_ok=True)
    make_venv()
    with LOG.open("w", encoding="utf-8", errors="replace") as log:
        pip = Pip(log, started)
        if index and stamp.get("index", index) != index:
            pip.run(f"removing torch of {stamp['index'] or 'the package index'}", ["uninstall", "--yes", "torch"])
        pip.run(torch_step(index, shutil.which("nvidia-smi") is not None, sys.platform), torch_arguments(index))
        if extra == "petals":
            pip.run("installing upstream Petals", ["install", "--no-deps", "--requirement", str(PETALS)])
            pip.run("installing layerswarm", ["install", "--no-deps", "--editable", str(ROOT)])
        else:
            project = f"{ROOT}[{extra}]" if extra else str(ROOT)
            what = "layerswarm and what its tests need" if extra else "layerswarm"
            versions = str(ROOT / "constraints.txt")
            pip.run(f"installing {what}", ["install", "--constraint", versions, "--editable", project])
    written = {"wanted": wanted(), "extra": extra, "index": index or stamp.get("index", "")}
    STAMP.write_text(json.dumps(written), encoding="utf-8")
    say(f"[{time.monotonic() - started:4.0f} s] installed in {VENV}")


def wanted() -> str:
    """A digest that changes whenever the installation would come out another one. The path is in it because scripts
    hold it.
    """
    digest = hashlib.sha256(str(ROOT).encode())
    for file in (ROOT / "setup.cfg", ROOT / "pyproject.toml", ROOT / "constraints.txt", PETALS):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def read_stamp() -> "dict[str, str]":
    """What was installed last; empty where nothing was."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def is_current(stamp: "dict[str, str]", want: str, extra: str, index: str) -> bool:
    """Whether an installation with this stamp serves. The tests' needs include all else; a choice of torch stays."""
    return stamp.get("wanted") == want and extra in ("", stamp.get("extra")) and index in ("", stamp.get("index"))


def make_venv() -> None:
    """Make the virtual environment, unless one is there that works."""
    if PYTHON.exists():
        check = [str(PYTHON), "-c", "import sys, pip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))"]
        if subprocess.run(check, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0:
            return
    if VENV.exists() and any(VENV.iterdir()):
        if not LOG.exists():
            raise Failure(f"{VENV} does not work and was not made by this program. Rename it, then run this again.")
        shutil.rmtree(str(VENV))
    if not importlib.util.find_spec("venv") or not importlib.util.find_spec("ensurepip"):
        package = "python{}.{}-venv".format(*sys.version_info[:2])
        raise Failure(f"this Python has no venv module. On Debian and Ubuntu: sudo apt install {package}")
    VENV.mkdir(exist_ok=True)
    LOG.touch()  # says that the folder is ours, also where the next line is interrupted
    made = subprocess.run(
        [sys.executable, "-m", "venv", str(VENV)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    if made.returncode:
        raise Failure(f"making {VENV} failed: {explain(made.stdout)}")


def torch_arguments(index: str) -> "list[str]":
    """Arguments of pip that install torch."""
    chosen = ["--index-url", index] if index else []
    return ["install", "--constraint", str(ROOT / "constraints.txt"), *chosen, "torch"]


def torch_step(index: str, nvidia: bool, platform: str) -> str:
    """Which torch is being installed and, where there is a choice, how to make it."""
    if index:
        return f"installing torch from {index}"
    if platform == "win32" and nvidia:
        return (
            "installing torch for the CPU; for this NVIDIA GPU stop here, "
            f"set SWARM_TORCH_INDEX={PYTORCH}cu130 and start again"
        )
    if platform.startswith("linux"):
        found = "an NVIDIA driver is here" if nvidia else "no NVIDIA driver is here"
        return f"installing torch ({found}; SWARM_TORCH_INDEX={PYTORCH}cpu is 3 GB smaller, without CUDA)"
    return "installing torch"


class Pip:
    """pip of the virtual environment, with its words in a log; people see a line per step, and on a terminal what is
    being fetched.
    """

    def __init__(self, log: "TextIO", started: float) -> None:
        self.log = log
        self.started = started

    def run(self, step: str, args: "list[str]") -> None:
        """Run pip once. Raises: Failure: it failed."""
        say(f"[{time.monotonic() - self.started:4.0f} s] {step}")
        command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input", *args]
        if args[0] == "install":
            command += ["--progress-bar", "off"]
        self.log.write(f"$ {' '.join(command)}\n")
        child = subprocess.Popen(
            command,
            cwd=str(ROOT),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=dict(os.environ, PYTHONUTF8="1"),
        )
        said = []
        try:
            for line in child.stdout or ():
                said.append(line)
                self.log.write(line)
                show(line.strip())
            child.wait()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            self.log.flush()
            show("")
        if child.returncode:
            raise Failure(f"{step.split(' (')[0].split(';')[0]} failed: {explain(''.join(said))} (log: {LOG})")


def explain(text: str) -> str:
    """The cause of a failed step and what to do, from all that it said."""
    low = text.lower()
    if "no space left" in low or "errno 28" in low or "not enough space on the disk" in low or "winerror 112" in low:
        return f"the disk is full. Free some space for {ROOT} (about 2 GB, 6 GB with CUDA) and run this again."
    if "permission denied" in low or "read-only file system" in low or "winerror 5]" in low:
        return f"{ROOT} cannot be written to. Copy the project to a folder of your own, or close what uses .venv."
    lost = ("name resolution", "getaddrinfo", "newconnectionerror", "connection refused", "timed out", "unreachable")
    if any(word in low for word in lost):
        return "the package index cannot be reached. Check the network (or pip's proxy settings) and run this again."
    if "resolutionimpossible" in low or "no matching distribution" in low:
        here = f"Python {sys.version_info[0]}.{sys.version_info[1]} on {sys.platform}"
        return f"the package index has not all that is needed for {here}, or it could not be reached."
    errors = [line.strip() for line in text.splitlines() if "error" in line.lower() and line.strip()]
    lines = errors or [line.strip() for line in text.splitlines() if line.strip()] or ["no reason was given"]
    return lines[-1]


def build_page(again: bool) -> None:
    """Build `chatbot-ui/` into the gateway's files where Node.js is; without it the gateway serves a simpler page.

    A failure is said and stops nothing. It is tried again when the sources change, or when `again` is set.
    """
    stamp, failed = BUILT / ".stamp", VENV / "page.failed"
    want = page_digest()
    if want in ("", read(stamp)):
        return
    if read(failed) == want and not again:
        say("building the chat page failed last time, so the simple one is served; 'bootstrap.py install' tries again")
        return
    npm = find_npm()
    if npm is None:
        say(f"no Node.js {NODE} or newer is here (https://nodejs.org), so the gateway serves its simple chat page")
        return
    failed.write_text(want, encoding="utf-8")
    started = time.monotonic()
    log = VENV / "page.log"
    lock = hashlib.sha256((PAGE / "package-lock.json").read_bytes()).hexdigest()
    fetched = PAGE / "node_modules" / ".swarm-lock"
    steps = [("building the chat page", ["run", "build"])]
    if read(fetched) != lock:
        fetch = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
        steps.insert(0, ("fetching what the chat page is built with", fetch))
    with log.open("w", encoding="utf-8", errors="replace") as words:
        for step, args in steps:
            say(f"[{time.monotonic() - started:4.0f} s] {step}")
            words.flush()
            if subprocess.run(
                [npm, *args],
                cwd=str(PAGE),
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=subprocess.STDOUT,
                env=dict(os.environ, NEXT_TELEMETRY_DISABLED="1", CI="1"),
            ).returncode:
                say(f"{step} failed, so the gateway serves its simple chat page (log: {log})")
                return
            if args[0] == "ci":
                fetched.write_text(lock, encoding="utf-8")
    shutil.rmtree(str(BUILT), ignore_errors=True)
    shutil.copytree(str(PAGE / "out"), str(BUILT))
    stamp.write_text(want, encoding="utf-8")
    failed.unlink()
    say(f"[{time.monotonic() - started:4.0f} s] built the chat page")


def page_digest() -> str:
    """A digest that changes with everything that the page is built from; empty where its sources are not here."""
    if not (PAGE / "package-lock.json").is_file():
        return ""
    digest = hashlib.sha256()
    kinds = (".json", ".mjs", ".ts")
    names = [path for path in PAGE.iterdir() if path.suffix in kinds and path.name != "next-env.d.ts"]
    files = [path for folder in ("app", "components", "lib", "public") for path in (PAGE / folder).rglob("*")]
    for path in sorted(path for path in names + files if path.is_file()):
        digest.update(path.relative_to(PAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def find_npm() -> "str | None":
    """The path of npm. None: it is not here, or its Node.js is too old."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    said = subprocess.run([node, "--version"], stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8").stdout
    version = said.strip().lstrip("v").split(".")[0]
    return npm if version.isdigit() and int(version) >= NODE else None


def read(path: Path) -> str:
    """The text of a file; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def run(command: "list[str]") -> int:
    """Become the program. Windows has no exec: there it is waited for, and Ctrl-C reaches it through the console."""
    sys.stdout.flush()
    sys.stderr.flush()
    if not WINDOWS:
        keep_stdin()
        os.execv(command[0], command)
    child = subprocess.Popen(command)
    # Loaded by their paths: what they are part of may not be importable. The job ends the program if this process is
    # killed; when the window is closed, this process waits for the program.
    job = runpy.run_path(str(ROOT / "swarm" / "system" / "jobs.py"))["JobObject"]()
    job.add(child.pid)
    with runpy.run_path(str(ROOT / "swarm" / "system" / "console.py"))["stop_on_close"](lambda: None):
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:
                continue


def keep_stdin() -> None:
    """Open a standard input where there is none: a closed one would give its number to the first file or socket that
    the program opens.
    """
    try:
        os.fstat(0)
    except OSError:
        os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)


def say(line: str) -> None:
    """Print a line to standard error."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def show(line: str) -> None:
    """Print what pip is doing, on one line that is overwritten; only on a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        return
    if line.startswith(("Collecting", "Downloading", "Installing", "Building")) or not line:
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write("\r" + " " * width + "\r" + (" " * 9 + line)[:width] * bool(line))
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
