"""Layout of the house: what its folders, files, functions and docstrings promise, held by the syntax trees."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

from tests import module_map
from tests.test_house import ROOT, tracked

PACKAGES = ("swarm", "routing", "backends", "patches", "openai_api")
SOURCES = (*PACKAGES, "benchmarks", "installer")
MAX_FILES = 15  # of a folder
MAX_LINES = 50  # of a function
MAX_ARROWS = 40  # between the rooms of a package
# First words that make a docstring a clause or a command instead of a name.
CLAUSES = re.compile(
    r"(what|how|who|whom|whose|whether|where|when|why|which|if|as|so|"
    r"serves|sends|runs|makes|keeps|holds|lets|belongs|says|tells|reads|writes|asks|gives|takes|answers|knows|finds)\b",
    re.IGNORECASE,
)
PRONOUNS = re.compile(r"\b(somebody|nobody|anybody|everybody|whoever|someone|no-one|anyone|everyone)\b", re.IGNORECASE)


def sources() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in SOURCES]


def code_folders() -> Iterator[tuple[Path, int]]:
    """Folders with code of the project, pages included, and how many files lie in each."""
    files = [path for path in tracked() if path.suffix in {".py", ".ts", ".tsx"} or path.name == "py.typed"]
    for folder in sorted({path.parent for path in files}):
        if folder.relative_to(ROOT).parts[:1] not in ((), ("tests",)):
            yield folder, sum(path.parent == folder for path in files)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES)


def cycle_in(arrows: set[tuple[str, str]]) -> list[str]:
    """The modules of a cycle; empty: there is none."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for importer, imported in arrows:
        sorter.add(importer, imported)
    try:
        sorter.prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def arrows_of(package: str, depth: int) -> set[tuple[str, str]]:
    """Imports within a package, between what lies at most `depth` folders below it."""

    def room(module: str) -> str:
        return ".".join(module.split(".")[: 1 + depth])

    inside = [module for module in graph().modules if module.split(".")[0] == package]
    return {
        (room(importer), room(imported))
        for importer in inside
        for imported in graph().find_modules_directly_imported_by(importer)
        if imported in inside and room(importer) != room(imported)
    }


@pytest.mark.parametrize("package", ["swarm", "openai_api"])
def test_the_rooms_of_a_package_stand_on_each_other_in_one_order(package: str) -> None:
    arrows = arrows_of(package, 1)
    assert not cycle_in(arrows)
    assert 0 < len(arrows) <= MAX_ARROWS, sorted(arrows)


def test_no_file_is_imported_by_what_it_imports() -> None:
    modules = {
        (importer, imported)
        for importer in graph().modules
        for imported in graph().find_modules_directly_imported_by(importer)
    }
    assert len(modules) > 500
    assert not cycle_in(modules)


def test_a_folder_shows_on_one_page() -> None:
    large = {str(folder.relative_to(ROOT)): files for folder, files in code_folders() if files > MAX_FILES}
    assert not large


def test_a_folder_of_a_package_says_its_job() -> None:
    for folder in {path.parent for path in sources()}:
        assert ast.get_docstring(tree_of(folder / "__init__.py")), folder


def test_no_function_is_longer_than_one_thought() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length}"
        for path in [*sources(), ROOT / "bootstrap.py"]
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := node.end_lineno - node.lineno + 1) > MAX_LINES  # type: ignore[operator]
    ]
    assert not long


def named(path: Path) -> Iterator[tuple[str, str | None]]:
    """The module and its public classes, each with its docstring."""
    where = str(path.relative_to(ROOT))
    if path.name != "__main__.py":
        yield where, ast.get_docstring(tree_of(path))
    for node in tree_of(path).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield f"{where} {node.name}", ast.get_docstring(node)


def test_modules_and_public_classes_say_what_they_are() -> None:
    said = dict(each for path in sources() for each in named(path))
    lacking = [what for what, text in said.items() if not text or re.match(r"\w+:\s*(\n|$)", text)]
    assert not lacking
    clauses = [f"{what}: {text.splitlines()[0]}" for what, text in said.items() if text and CLAUSES.match(text)]
    assert not clauses


def test_machinery_is_called_by_its_name() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sources()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if PRONOUNS.search(line)
    ]
    assert not found


def test_one_word_is_one_thing() -> None:
    classes: dict[str, list[str]] = {}
    for path in sources():
        if path.relative_to(ROOT).parts[0] not in PACKAGES or "versions" in path.parts:
            continue
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    # hivemind's own names, which upstream's code asks for.
    twice = {name: files for name, files in classes.items() if len(files) > 1}
    assert not {name: files for name, files in twice.items() if not any(file.startswith("patches/") for file in files)}


def test_the_tests_of_a_module_are_found_by_its_name() -> None:
    """Folders of tests mirror folders of packages, and a file that is called like a module lies beside its like."""
    modules = {path.relative_to(ROOT) for path in sources()}
    folders = {path.parent for path in modules}
    for path in tracked():
        name = path.relative_to(ROOT)
        if path.suffix != ".py" or name.parts[0] != "tests" or len(name.parts) < 3 or name.parts[1] not in PACKAGES:
            continue
        assert Path(*name.parts[1:-1]) in folders, f"{name}: the packages have no such folder"
        if not path.name.startswith("test_"):
            continue
        like = [module for module in modules if module.name == path.name.removeprefix("test_")]
        mirrored = Path(*name.parts[1:-1], path.name.removeprefix("test_"))
        own = [module for module in like if module.parts[0] == name.parts[1]]
        assert not own or mirrored in own, f"{name} is not where {own[0]} would have its tests"


def test_the_architecture_lists_every_module() -> None:
    page = module_map.PAGE.read_text(encoding="utf-8")
    assert page == module_map.written(page), "python -m tests.module_map writes the list anew"
    for name in re.findall(r"`([\w/]+\.py)`", page):
        assert (ROOT / name).is_file(), name


def test_where_is_what_names_code_that_is_there() -> None:
    page = (ROOT / "docs" / "where.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if re.match(r"\| [^|]+ \| .*`[\w/]+\.py`", line)]
    assert len(rows) >= 30
    for row in rows:
        files = [ROOT / name for name in re.findall(r"`([\w/]+\.py)`", row)]
        assert all(file.is_file() for file in files), row
        code = "".join(file.read_text(encoding="utf-8") for file in files)
        for symbol in re.findall(r"`(?:\w+\.)*(\w+)(?:\(\))?`", re.sub(r"`[\w/]+\.py`", "", row)):
            assert re.search(rf"^ *(?:async def|def|class) {symbol}\b|^{symbol}\b.* =", code, re.MULTILINE), (
                row,
                symbol,
            )
