"""Build of the setup programs for Windows, on Linux with NSIS: `python -m installer.build online offline`.

They go to `dist/`, each with a list of what is in it (`.md` for people, `.json` for programs).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from installer import licences, parts
from installer.parts import ROOT, BuildError

HERE = Path(__file__).resolve().parent
VARIANTS = ("online", "offline")
WHEELS = """# Bundled wheels

Unmodified. The text of each licence is inside of the wheel, so after the installation it is in
`venv\\Lib\\site-packages\\NAME.dist-info`. The source code is on the Python package index under the same name and
version.

"""
INSTALLED = 720_000  # KiB that an installation takes, about, for Windows' list of programs and its check of the disk


def main() -> int:
    """Build the setup programs that the command line names; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", nargs="+", choices=VARIANTS)
    parser.add_argument("--python", default="3.12", help="that of the installation: 3.11, 3.12 or 3.13 [%(default)s]")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder [%(default)s]")
    given = parser.parse_args()
    if shutil.which("makensis") is None:
        print("makensis is missing: apt-get install nsis", file=sys.stderr)
        return 1
    if not (ROOT / "openai_api" / "static" / "app").is_dir():
        print("NOTICE: the chat page is not built; the programs get the simpler one", file=sys.stderr)
    try:
        for variant in given.variant:
            print(build(variant == "offline", given.python, given.output))
    except (BuildError, licences.NotRedistributable) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def build(offline: bool, python: str, output: Path) -> str:
    """Make one setup program and its list.

    Returns:
        The list, as Markdown.

    Raises:
        BuildError: a part is missing or makensis failed.
        NotFree: a wheel may not be bundled.
    """
    output.mkdir(parents=True, exist_ok=True)
    variant = f"offline-py{python.replace('.', '')}" if offline else "online"
    program = output.resolve() / f"layerswarm-{parts.version()}-setup-{variant}.exe"
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder)
        wheels = collect(stage, offline, python)
        command = ["makensis", "-V2", "-WX", "-INPUTCHARSET", "UTF8"]
        defines = {"VERSION": parts.version(), "PYTHON": python, "STAGE": str(stage), "OUT": str(program)}
        defines |= {"INSTALLED": str(INSTALLED)} | ({"OFFLINE": ""} if offline else {})
        command += [f"-D{name}={value}" for name, value in defines.items()]
        done = subprocess.run([*command, str(HERE / "layerswarm.nsi")], capture_output=True, text=True)
        if done.returncode:
            raise BuildError(f"makensis failed:\n{done.stdout}{done.stderr}")
        contents = [
            {"file": str(path.relative_to(stage)), "bytes": path.stat().st_size}
            for path in sorted(stage.rglob("*"))
            if path.is_file()
        ]
    text = as_markdown(program, contents, wheels)
    program.with_suffix(".md").write_text(text, encoding="utf-8")
    listing = {
        "file": program.name,
        "bytes": program.stat().st_size,
        "sha256": digest(program),
        "python": python,
        "contents": contents,
        "wheels": [asdict(wheel) for wheel in wheels],
    }
    program.with_suffix(".json").write_text(json.dumps(listing, indent=2) + "\n", encoding="utf-8")
    return text


def collect(stage: Path, offline: bool, python: str) -> list[licences.Wheel]:
    """Lay out what goes into the program, as it will lie on the user's machine: `setup/`, `licences/`."""
    setup, texts = stage / "setup", stage / "licences"
    shutil.copytree(HERE / "pc", setup / "pc", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(HERE / "setup_steps.py", setup)
    shutil.copy2(HERE / "console.cmd", setup)
    shutil.copy2(ROOT / "constraints.txt", setup)
    # The terms of Intel are those of parts of torch.
    shutil.copytree(HERE / "licences", texts, ignore=shutil.ignore_patterns(*([] if offline else ["intel-*"])))
    for name in ("LICENSE", "NOTICE", "THIRD_PARTY_NOTICES.md"):
        shutil.copy2(ROOT / name, texts)
    for path in parts.uv(setup):
        if path.suffix == ".txt":
            path.rename(texts / path.name)
    house = setup / "wheels"
    house.mkdir()
    ours = parts.our_wheel(house)
    wheels = [licences.read(path) for path in (parts.wheelhouse(house, ours, python) if offline else [ours])]
    (texts / "WHEELS.md").write_text(WHEELS + licences.listing(wheels), encoding="utf-8")
    return wheels


def as_markdown(program: Path, contents: list[dict[str, object]], wheels: list[licences.Wheel]) -> str:
    """What people want to know of the program: its size and what is in it."""
    size = program.stat().st_size
    return "\n".join(
        [
            f"# {program.name}",
            "",
            f"{size / 1e6:.1f} MB ({size} bytes), sha256 `{digest(program)}`",
            "",
            "| file | bytes |",
            "|---|---:|",
            *(f"| {entry['file']} | {entry['bytes']} |" for entry in contents if "wheels/" not in str(entry["file"])),
            "",
            licences.listing(wheels),
        ]
    )


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
