"""The registry of patches, and how they come into effect."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from patches import PatchError, hooks
from patches.page import PAGE, written
from patches.patch import PROVIDED, Lines, Patch
from patches.registry import check, patches
from tests.upstream import ROOT, petals_python

ALL = patches()


def test_the_page_lists_the_patches_as_they_are() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert written(page) == page, "python -m patches --write"


def test_every_patch_has_a_name_a_reason_lines_of_upstream_and_a_test() -> None:
    assert len({patch.name for patch in ALL}) == len(ALL)
    for patch in ALL:
        assert patch.replaces and patch.why and patch.changes and patch.upstream
        assert all(len(lines.digest) == 12 and lines.first <= lines.last for lines in patch.upstream)
        file, _, test = patch.test.partition("::")
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), patch.test


def test_nothing_is_changed_by_two_patches() -> None:
    targets = [target for patch in ALL for target in patch.changes]
    assert len(targets) == len(set(targets))


def test_every_name_leads_to_code() -> None:
    pytest.importorskip("torch")
    for patch in ALL:
        for source in patch.changes.values():
            assert hooks.found(source) is not None


def test_importing_the_patches_imports_neither_torch_nor_upstream() -> None:
    code = (
        "import sys, patches.registry, patches.page; patches.registry.patches()\n"
        "print(sorted({'torch', 'transformers', 'petals', 'numpy', 'zmq'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_patch_that_does_not_fit_upstream_says_so_by_name(tmp_path: Path) -> None:
    file = tmp_path / "petals" / "part.py"
    file.parent.mkdir()
    file.write_text("one\ntwo\nthree\n")
    lines = Lines("petals/part.py", 2, 2, "")
    fitting = dataclasses.replace(lines, digest=lines.now(tmp_path))
    patch = dataclasses.replace(ALL[0], name="example", upstream=(fitting,))
    patch.check(tmp_path)
    file.write_text("one\r\ntwo  \r\nthree, changed\r\n")  # other lines, and ends of lines, do not matter
    patch.check(tmp_path)
    file.write_text("one\ntwo, changed\nthree\n")
    with pytest.raises(PatchError, match=r"'example': petals/part\.py:2 is not what"):
        patch.check(tmp_path)
    file.unlink()
    with pytest.raises(PatchError, match=r"'example': petals/part\.py is not there"):
        patch.check(tmp_path)


def test_without_upstream_it_is_said_how_to_get_it() -> None:
    if hooks.PathFinder.find_spec("petals") is None:
        with pytest.raises(PatchError, match=r"bootstrap\.py petals"):
            check(ALL)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of upstream's kind: `toy_upstream`, and none that was imported before."""
    package = tmp_path / "toy_upstream"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text(
        "import toy_locks\n\ndef ask():\n    return 'outside'\n\n"
        "class Server:\n    def __init__(self):\n        self.said = ['upstream']\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("toy_")]:
        monkeypatch.delitem(sys.modules, name)
    return package


def also(original):  # type: ignore[no-untyped-def]
    def initialise(self):  # type: ignore[no-untyped-def]
        original(self)
        self.said.append("patched")

    return initialise


def ask() -> str:
    return "inside"


def test_changes_are_made_when_a_module_is_imported(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finder = hooks.Changes()
    for heavy in ("transformers", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, heavy, sys)
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    here = "tests.patches.test_registry"
    for how, changes in (
        ("replace", {"toy_upstream.part:ask": f"{here}:ask"}),
        ("wrap", {"toy_upstream.part:Server.__init__": f"{here}:also"}),
        ("lend", {"toy_upstream.part:toy_locks": "patches.concurrency.locks"}),
        ("replace", {"toy_upstream.other": "patches.concurrency.locks"}),
    ):
        dataclasses.replace(ALL[-1], changes=changes, how=how).apply(finder)  # type: ignore[arg-type]
    import toy_upstream.part as part  # type: ignore[import-not-found]

    assert part.ask() == "inside"
    assert part.Server().said == ["upstream", "patched"]
    assert part.toy_locks.__name__ == "patches.concurrency.locks"
    assert "toy_locks" not in sys.modules
    from toy_upstream.other import LOCK_EX  # type: ignore[import-not-found]

    assert LOCK_EX == 2
    with pytest.raises(PatchError, match="was imported before"):
        finder.add("toy_upstream.part", print)


def test_what_is_not_there_to_replace_is_said(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finder = hooks.Changes()
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    monkeypatch.setitem(sys.modules, "toy_locks", sys)
    finder.add("toy_upstream.part", hooks.replacement("Client.__init__", "builtins:print", wraps=False))
    with pytest.raises(PatchError, match=r"toy_upstream\.part has no Client\.__init__"):
        import toy_upstream.part  # noqa: F401


def test_names_are_provided_without_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    hooks.provide("toy_absent.deep.down:flat", "patches.codec.nested:nested_flatten")
    hooks.provide("toy_absent:number", "patches.concurrency.locks:LOCK_EX")
    import toy_absent  # type: ignore[import-not-found]
    from toy_absent.deep.down import flat  # type: ignore[import-not-found]

    assert list(flat([1, (2,)])) == [1, 2]
    assert toy_absent.number == 2
    with pytest.raises(AttributeError, match="as provided by `patches` has no other"):
        _ = toy_absent.other


def test_a_package_that_was_imported_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PatchError, match="json is installed and was imported"):
        hooks.provide("json:loads", "patches.codec.nested:nested_flatten")


NAMES_IN_UPSTREAM = """
import ast, sys
from pathlib import Path
from patches.registry import installed, patches
used, attributes = set(), set()
for file in sorted((installed() / "petals").rglob("*.py")):
    if file.name == "run_dht.py":
        continue  # a program that starts a DHT, which there is none of
    tree = ast.parse(file.read_text())
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hivemind"):
            used |= {f"{node.module}:{alias.name}" for alias in node.names}
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Import) and node.names[0].name == "hivemind":
            names["hivemind"] = "hivemind"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
            attributes.add((names[node.value.id], node.attr))
provided = {target for patch in patches() for target in patch.changes if target.startswith("hivemind")}
modules = {target.partition(":")[0] for target in provided} | {"hivemind.compression", "hivemind.dht"}
used |= {f"{module}:{name}" for module, name in attributes if module in modules}
whole = {f"{m.rpartition('.')[0]}:{m.rpartition('.')[2]}" for m in modules}
print("missing", sorted(used - provided - whole))
print("unused", sorted(provided - used - {"hivemind.compression.base:USE_LEGACY_BFLOAT16"}))  # it is set
"""


def test_upstream_as_installed_fits_and_gets_every_name_that_it_imports() -> None:
    python = petals_python()
    done = subprocess.run([python, "-m", "patches", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{len(ALL)} patches fit" in done.stdout
    done = subprocess.run([python, "-c", NAMES_IN_UPSTREAM], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["missing []", "unused []"]


def test_platforms_are_told_apart() -> None:
    windows = [patch for patch in ALL if patch.platforms]
    assert [patch.name for patch in windows] == ["file-locks"]
    assert windows[0].applies_to("win32")
    assert not windows[0].applies_to("linux")
    assert all(isinstance(patch, Patch) and PROVIDED for patch in ALL)
