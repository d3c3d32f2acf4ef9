"""Real English text without a download: the documentation strings of Python's standard library.

The library is parsed, never imported, so nothing of it runs. What is found depends on the version of Python:
modules come and go and documentation is rewritten. Compare numbers only between runs of one version.
"""

import ast
import inspect
import os
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Folders with tests, generated tables or vendored copies: not documentation that a person wrote for readers.
SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data"}
    | {"lib2to3", "ensurepip", "idlelib", "turtledemo", "encodings"}
)


@dataclass(frozen=True)
class Document:
    """The documentation of one module: its dotted name and its text."""

    name: str
    text: str


def standard_library_text(minimum_length: int = 400) -> list[Document]:
    """Returns the documentation strings of Python's standard library, one document a module, sorted by name.

    A document is the module's own documentation string, followed by those of its public classes, methods and
    functions in the order of the source, separated by empty lines. Interactive examples (lines that start
    with `>>>` and their outputs) are left in.

    The result depends on the version of Python that runs (`sys.version_info`): the same code finds other
    words under 3.11 than under 3.13, and a distribution may ship only part of the library.

    Args:
        minimum_length: documents of fewer characters are left out.

    Raises:
        ValueError: the minimum is negative.
        OSError: this Python has no readable source of its library.
    """
    if minimum_length < 0:
        raise ValueError(f"minimum_length must be at least 0 characters, got {minimum_length}.")
    documents = [d for d in _all_documents() if len(d.text) >= minimum_length]
    if not documents and minimum_length == 0:
        raise OSError(
            f"found no source of the standard library under {sysconfig.get_path('stdlib')}; "
            "install a Python that ships its library as .py files."
        )
    return documents


@cache
def _all_documents() -> tuple[Document, ...]:
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for path, name in _modules(root):
        text = "\n\n".join(_docstrings(path))
        if text:
            found.append(Document(name, text))
    return tuple(sorted(found, key=lambda d: d.name))


def _modules(root: Path) -> Iterator[tuple[Path, str]]:
    """Yields the public modules under the library's folder, with their dotted names."""
    for folder, inner, files in os.walk(root):
        # Changed in place, so that none of these is entered.
        inner[:] = [name for name in inner if name not in SKIPPED_FOLDERS]
        for path in (Path(folder, file) for file in files if file.endswith(".py")):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[0] not in sys.stdlib_module_names:
                continue
            if parts[-1] == "__init__":
                parts = parts[:-1]
            if not any(part.startswith("_") for part in parts):
                yield path, ".".join(parts)


def _docstrings(path: Path) -> list[str]:
    """Returns the documentation strings of one file, those of private definitions left out."""
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (OSError, SyntaxError):
        return []
    return [inspect.cleandoc(found) for found in _walk(tree)]


_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _walk(node: _Documented) -> Iterator[str]:
    """Yields the documentation string of a definition and of the public ones in it."""
    docstring = ast.get_docstring(node, clean=False)
    if docstring and docstring.strip():
        yield docstring
    # Functions inside functions are nobody's interface, so only modules and classes are entered.
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if isinstance(child, _Documented) and not child.name.startswith("_"):
                yield from _walk(child)
