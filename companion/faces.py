"""Packages whose public names are imported when they are first used.

A package such as `companion.metrics` offers the names of a dozen modules. Its `__init__` lists them where type
checkers and readers look for them, under `if TYPE_CHECKING:`, and calls `make_lazy(__name__)`. Whoever imports one
name then pays for one module, and depends on one module.
"""

import ast
import importlib
import importlib.abc
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any


def exports(source: str) -> dict[str, tuple[str, str]]:
    """Reads the names that a package's source offers under `if TYPE_CHECKING:`.

    Args:
        source: of the package's `__init__`.

    Returns:
        Name → (module, name there).
    """
    return {
        alias.asname or alias.name: (statement.module, alias.name)
        for block in ast.parse(source).body
        if isinstance(block, ast.If)
        and isinstance(block.test, ast.Name)
        and block.test.id == "TYPE_CHECKING"
        for statement in block.body
        if isinstance(statement, ast.ImportFrom) and statement.module and not statement.level
        for alias in statement.names
    }


class _Face(ModuleType):
    """A package that imports a public name's module when the name is asked for."""

    _exports: dict[str, tuple[str, str]]

    def __getattr__(self, name: str) -> Any:
        if name not in self._exports:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        home, attribute = self._exports[name]
        if home == self.__name__:
            value = importlib.import_module(f"{home}.{attribute}")
        else:
            value = getattr(importlib.import_module(home), attribute)
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds each submodule in its package. Where a function has its module's name, as `fid` has,
        # the function is what the package offers.
        home = self._exports.get(name, (self.__name__,))[0]
        if home != self.__name__ and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)

    def __dir__(self) -> Iterable[str]:
        return sorted({*super().__dir__(), *self._exports})


def make_lazy(name: str) -> None:
    """Lets a package offer the names of its `if TYPE_CHECKING:` block without importing them; call it in `__init__`.

    Args:
        name: the package's `__name__`.

    Raises:
        ImportError: if the package's source is not at hand.
    """
    package = sys.modules[name]
    loader = package.__spec__.loader if package.__spec__ else None
    source = loader.get_source(name) if isinstance(loader, importlib.abc.InspectLoader) else None
    if source is None:
        raise ImportError(f"the source of {name!r} is not at hand, so its names are unknown")
    package.__dict__["_exports"] = exports(source)
    package.__class__ = _Face
