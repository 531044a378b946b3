"""Module map: the table of all modules in `docs/architecture.md`, written from their docstrings.

`python -m tests.module_map` writes it anew; a test holds that it is up to date.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("routing", "backends", "patches", "swarm", "openai_api")
BEGIN, END = "<!-- modules: python -m tests.module_map -->", "<!-- end of modules -->"


def summary(path: Path) -> str:
    """The first sentence of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    sentence = re.split(r"(?<=[.!?])\s", " ".join(text.partition("\n\n")[0].split()), maxsplit=1)[0]
    return sentence.rstrip(".").replace("|", "\\|")


def folders() -> Iterator[tuple[Path, list[Path]]]:
    """Folders of the packages with their modules, outermost first."""
    for package in PACKAGES:
        for init in sorted((ROOT / package).rglob("__init__.py")):
            if "versions" not in init.parts:
                yield init.parent, sorted(set(init.parent.glob("*.py")) - {init, init.with_name("__main__.py")})


def table() -> str:
    lines = []
    for folder, modules in folders():
        name = folder.relative_to(ROOT).as_posix()
        lines += ["", f"### {name}/", "", f"{summary(folder / '__init__.py')}.", ""]
        if modules:
            lines += ["| module | what it is |", "|---|---|"]
            lines += [f"| `{path.relative_to(ROOT).as_posix()}` | {summary(path)} |" for path in modules]
    return "\n".join(lines)


def written(page: str) -> str:
    """The page with the table as it is now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
