"""Hooks: how patches come into effect; modules that exist only here, and changes that are made when a module is
imported.

Nothing is imported before it is asked for, so that installing all patches costs nothing and needs no torch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

MISSING = object()


class PatchError(Exception):
    """A patch that cannot be applied, or that does not fit the upstream that is installed. The text names the patch."""


def found(source: str) -> Any:
    """What `module:name` or `module` names."""
    module, _, name = source.partition(":")
    loaded = importlib.import_module(module)
    return getattr(loaded, name) if name else loaded


def provide(target: str, source: str) -> None:
    """Let `from MODULE import NAME` give what `source` names, where `target` is `MODULE:NAME`.

    The module, and those that it lies in, need not exist; they are made.
    """
    module_name, _, name = target.partition(":")
    _synthetic(module_name).__dict__["__sources__"][name] = source


def _synthetic(name: str) -> ModuleType:
    module = sys.modules.get(name)
    if module is None:
        module = ModuleType(name, "Provided by `patches`.")
        module.__path__ = []  # so that modules can lie in it
        sources: dict[str, str] = {}
        module.__dict__["__sources__"] = sources

        def look_up(attribute: str) -> Any:
            if attribute not in sources:
                raise AttributeError(f"{name} as provided by `patches` has no {attribute}")
            value = found(sources[attribute])
            setattr(module, attribute, value)
            return value

        module.__dict__["__getattr__"] = look_up
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(_synthetic(parent), child, module)
    if "__sources__" not in module.__dict__:
        raise PatchError(f"{name} is installed and was imported before the patches: import `patches` first")
    return module


Change = Callable[[ModuleType], None]


class Changes(MetaPathFinder):
    """Changes modules of others as they are imported; to be put first in `sys.meta_path`."""

    def __init__(self) -> None:
        self._changes: dict[str, list[Change]] = {}
        self._lent: dict[str, dict[str, str]] = {}
        self._instead: dict[str, str] = {}

    def add(self, module: str, change: Change) -> None:
        """Call `change` with the module as soon as it has been imported."""
        self._require_unimported(module)
        self._changes.setdefault(module, []).append(change)

    def lend(self, module: str, name: str, source: str) -> None:
        """While `module` is being imported, `import NAME` gives the module `source`."""
        self._require_unimported(module)
        self._lent.setdefault(module, {})[name] = source

    def instead(self, module: str, source: str) -> None:
        """`module` is never imported; an import of it gets what is in `source`."""
        self._require_unimported(module)
        self._instead[module] = source

    def _require_unimported(self, module: str) -> None:
        if module in sys.modules:
            raise PatchError(f"{module} was imported before the patches: apply them first")

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in self._instead:
            return ModuleSpec(fullname, _Instead(self._instead[fullname]))
        if fullname not in self._changes and fullname not in self._lent:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._changes.get(fullname, []), self._lent.get(fullname, {}))
        return spec


class _Instead(Loader):
    def __init__(self, source: str) -> None:
        self._source = source

    def create_module(self, spec: ModuleSpec) -> None:
        """As usual."""

    def exec_module(self, module: ModuleType) -> None:
        here = vars(found(self._source))
        module.__dict__.update({name: value for name, value in here.items() if name not in vars(module)})


class _Loader(Loader):
    def __init__(self, loader: Loader, changes: Sequence[Change], lent: dict[str, str]) -> None:
        self._loader, self._changes, self._lent = loader, changes, lent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        with _lent(self._lent):
            self._loader.exec_module(module)
        for change in self._changes:
            change(module)


@contextmanager
def _lent(names: dict[str, str]) -> Iterator[None]:
    before = {name: sys.modules.get(name, MISSING) for name in names}
    if names:
        # They look for the same names to find out what there is on this machine, and must not be told otherwise.
        for other in ("transformers", "huggingface_hub"):
            importlib.import_module(other)
    sys.modules.update({name: found(source) for name, source in names.items()})
    try:
        yield
    finally:
        for name, module in before.items():
            if module is MISSING:
                del sys.modules[name]
            else:
                sys.modules[name] = module  # type: ignore[assignment]


def replacement(path: str, source: str, wraps: bool) -> Change:
    """A change that puts what `source` names in the place of the attribute `path` (`NAME` or `CLASS.NAME`).

    Args:
        wraps: `source` is given what was there before, and returns what is to be there.
    """
    *owners, name = path.split(".")

    def change(module: ModuleType) -> None:
        owner: Any = module
        for step in owners:
            owner = getattr(owner, step, None)
        before = vars(owner).get(name, MISSING) if owner is not None else MISSING
        if before is MISSING:
            raise PatchError(f"{module.__name__} has no {path} to replace: is this another version of it?")
        setattr(owner, name, found(source)(before) if wraps else found(source))

    return change
