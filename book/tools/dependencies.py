"""What a notebook's outputs depend on: its code, the code of the package that it uses, checkpoints and records.

`source_hash` is one hash of all of it. It changes when the numbers may change, and not when only words do: comments,
docstrings, type annotations and the messages of errors and warnings are left out, and so are modules that no number
passes through. It follows names: `from companion.metrics import fid` depends on the module of `fid`, not on all
metrics. Nothing of the notebook or the package is run for it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import yaml

from companion.faces import exports

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
CHECKPOINTS = ROOT / "companion" / "checkpoints"

#: Modules through which no number of a notebook passes, each with the reason. They must not compute: a test holds that
#: they import nothing that could.
NEUTRAL = {
    "companion.errors": "builds exceptions and their words",
    "companion.faces": "looks names up",
    "companion.files": "writes files whole and locks them; what is in them comes from the caller",
    "companion.cli": "the command line, which no notebook calls",
    "companion.recipes.registry": "says where recipes are; the settings of those that are used are hashed themselves",
}
#: What of a checkpoint's card says where and when, not what.
CIRCUMSTANCES = {"packages", "seconds", "device", "card_sha256"}

_RECORD = re.compile(r"measurements/[\w-]+\.json")
_LOADERS = {"load_checkpoint", "load_card"}


# --- what a piece of code means ----------------------------------------------------------------------------


def python_of(source: str) -> str:
    """Returns a cell without the lines that are IPython's, not Python's."""
    return "\n".join(
        "" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines()
    )


def _is_wordy(statement: ast.stmt) -> bool:
    """Says whether a statement is a docstring, or lists a module's names or its version."""
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id in ("__all__", "__version__")
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


class _Wordless(ast.NodeTransformer):
    """Takes out what a reader or a type checker sees and no number depends on."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for name in ("body", "orelse", "finalbody"):
            if isinstance(statements := getattr(node, name, None), list):
                kept = [s for s in statements if not _is_wordy(s) and not is_type_checking(s)]
                setattr(node, name, kept)
        return super().generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def _visit_function(self, node: Any) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    visit_FunctionDef = visit_AsyncFunctionDef = _visit_function

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        # In a dataclass the annotation makes the field, whatever it says, unless it says that it makes none.
        text = ast.unparse(node.annotation)
        special = next((word for word in ("ClassVar", "InitVar", "KW_ONLY") if word in text), "...")
        node.annotation = ast.Name(special, ast.Load())
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return _Unworded().visit(node)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        node.msg = None
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if _called(node) == "warn":
            return _Unworded().visit(node)
        return self.generic_visit(node)


class _Unworded(ast.NodeTransformer):
    """Takes the strings out of the raising of an error."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant("") if isinstance(node.value, str) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return ast.Constant("")

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        visited: Any = self.generic_visit(node)
        sides = [getattr(side, "value", None) for side in (visited.left, visited.right)]
        return ast.Constant("") if sides == ["", ""] else visited


def is_type_checking(statement: ast.stmt) -> bool:
    """Says whether a statement is an `if TYPE_CHECKING:`, which never runs."""
    return (
        isinstance(statement, ast.If)
        and isinstance(statement.test, ast.Name)
        and statement.test.id == "TYPE_CHECKING"
    )


def wordless(source: str) -> ast.Module:
    """Parses code and leaves out comments, docstrings, annotations, messages and what never runs."""
    tree: ast.Module = _Wordless().visit(ast.parse(source))
    return tree


def _canonical(node: object) -> str:
    """Writes a syntax tree down in a way that is the same in every version of Python."""
    if isinstance(node, ast.Constant):
        return f"{type(node.value).__name__}:{node.value!r}"
    if isinstance(node, ast.JoinedStr):
        # Some versions put empty strings between the parts.
        parts = [part for part in node.values if getattr(part, "value", None) != ""]
        return f"JoinedStr({_canonical(parts)})"
    if isinstance(node, ast.AST):
        fields = (
            f"{name}={_canonical(value)}"
            for name, value in ast.iter_fields(node)
            if value is not None and value != [] and name not in ("ctx", "kind", "type_comment")
        )
        return f"{type(node).__name__}({','.join(fields)})"
    if isinstance(node, list):
        return "[" + ",".join(_canonical(item) for item in node) + "]"
    return repr(node)


def meaning_of(source: str) -> str:
    """Returns what a piece of code says, without the words around it; equal for code that gives equal numbers."""
    return _canonical(wordless(source))


# --- what a piece of code uses -----------------------------------------------------------------------------


def module_file(name: str) -> Path | None:
    """Returns the file of a `companion` module, or nothing if the name is not a module's."""
    path = ROOT.joinpath(*name.split("."))
    for candidate in (path / "__init__.py", path.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


@dataclass(frozen=True)
class _Module:
    """What is to be known about a module of the package."""

    meaning: str
    uses: frozenset[str]
    checkpoints: frozenset[str]


@cache
def _parsed(path: Path, modified: int) -> _Module:
    source = path.read_text(encoding="utf-8")
    offers = path.name == "__init__.py"
    tree = wordless(source)
    # Where a function is given a checkpoint's name, its caller has written it.
    return _Module(
        _canonical(tree),
        frozenset(used_modules(tree, offers=offers)),
        frozenset(checkpoints_loaded(tree)[0]),
    )


def _module(path: Path) -> _Module:
    return _parsed(path, path.stat().st_mtime_ns)


@cache
def _exports_of(path: Path, modified: int) -> dict[str, tuple[str, str]]:
    return exports(path.read_text(encoding="utf-8"))


def home_of(module: str, name: str | None) -> set[str]:
    """Returns the modules behind a name of a module: a submodule's, the one that a package's face names, or itself.

    Args:
        module: such as "companion.metrics".
        name: such as "fid"; "*" for every name; nothing for the module alone.
    """
    path = module_file(module)
    if path is None:
        return set()
    offered = _exports_of(path, path.stat().st_mtime_ns) if path.name == "__init__.py" else {}
    if name == "*":
        return {module}.union(*(home_of(module, each) for each in offered))
    if name in offered:
        home, attribute = offered[name]
        return {f"{home}.{attribute}" if home == module else home, module}
    if name is not None and module_file(f"{module}.{name}"):
        return {f"{module}.{name}"}
    return {module}


def _names_used(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _dotted(node: ast.expr) -> list[str] | None:
    """Returns ["a", "b", "c"] for a.b.c, and nothing for anything but names with dots."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (front := _dotted(node.value)) is not None:
        return [*front, node.attr]
    return None


def _walk_dotted(module: str, names: Iterable[str]) -> set[str]:
    """Follows attributes from a module: `data.toy.grid` from `companion` leads to `companion.data.toy`."""
    found: set[str] = set()
    for name in names:
        homes = home_of(module, name)
        found |= homes
        submodule = next((home for home in homes if home.endswith(f".{name}")), None)
        if submodule is None or module_file(submodule) is None:
            break
        module = submodule
    return found


def used_modules(tree: ast.Module, *, offers: bool = False) -> set[str]:
    """Returns the `companion` modules whose code a piece of code can reach by the names it uses.

    Args:
        tree: the code, after `wordless`.
        offers: whether what it imports is offered to others, as in a package's `__init__`. Elsewhere an imported name
            that nothing uses (one for annotations, say, which have been taken out) counts for nothing.
    """
    used = _names_used(tree)
    found: set[str] = set()
    modules: dict[str, str] = {}  # name here → module that it stands for
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "companion":
                    found |= home_of(alias.name, None)
                    modules[alias.asname or "companion"] = (
                        alias.name if alias.asname else "companion"
                    )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "companion":
            for alias in node.names:
                used_here = alias.name == "*" or (alias.asname or alias.name) in used
                if not used_here and not offers:
                    continue
                homes = home_of(str(node.module), alias.name)
                submodule = f"{node.module}.{alias.name}"
                if submodule in homes and module_file(submodule):
                    modules[alias.asname or alias.name] = submodule
                found |= homes
    assigned = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    inner = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute)
    }
    for node in ast.walk(tree):
        if id(node) in inner or not isinstance(node, ast.Name | ast.Attribute):
            continue
        path = _dotted(node)
        if path and path[0] in modules:
            if path[1:]:
                found |= _walk_dotted(modules[path[0]], path[1:])
            elif path[0] not in assigned:
                # The module itself goes somewhere, and with it all that it offers.
                found |= home_of(modules[path[0]], "*")
    return found


# --- names of checkpoints and recipes ----------------------------------------------------------------------


class NotWrittenOut(ValueError):
    """A name that cannot be told from the code without running it."""


_COMPREHENSIONS = (ast.GeneratorExp, ast.ListComp, ast.SetComp, ast.DictComp)


def _called(node: ast.AST) -> str:
    """Returns the last part of the name of the function that a call calls."""
    function = node.func if isinstance(node, ast.Call) else None
    return str(getattr(function, "id", getattr(function, "attr", "")))


class _Literals:
    """The strings that the variables of a piece of code can stand for, as far as they are written in it."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self._parent = {
            id(child): parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)
        }

    def strings(self, node: ast.expr | None, depth: int = 8) -> set[str]:
        """Returns the strings that an expression can stand for.

        Raises:
            NotWrittenOut: if they are not written in the code.
        """
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return {node.value}
        candidates: list[ast.expr] = []
        if isinstance(node, ast.IfExp):
            candidates = [node.body, node.orelse]
        elif isinstance(node, ast.Subscript):
            candidates = [v for each in self._written(node.value, ast.Dict) for v in each.values]
        elif isinstance(node, ast.Name):
            candidates = self._values(node, node.id)
        if not candidates or not depth:
            raise NotWrittenOut(ast.unparse(node) if node is not None else "nothing")
        return set().union(*(self.strings(value, depth - 1) for value in candidates))

    def _values(self, node: ast.AST, name: str) -> list[ast.expr]:
        """Returns what a variable stands for at a place.

        The nearest loop or function that binds it counts; failing that, all assignments.
        """
        inner = node
        while (outer := self._parent.get(id(inner))) is not None:
            inner = outer
            loops: list[Any] = []
            if isinstance(outer, _COMPREHENSIONS):
                loops = outer.generators
            elif isinstance(outer, ast.For):
                loops = [outer]
            for loop in loops:
                if name in _names_used(loop.target):
                    return self._each(loop.target, loop.iter, name)
            if isinstance(outer, ast.FunctionDef):
                parameters = [argument.arg for argument in outer.args.args]
                if name in parameters:
                    return self._arguments(outer.name, parameters.index(name), name)
        return [
            value
            for statement in ast.walk(self.tree)
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            for value in self._unpack(target, statement.value, name)
        ]

    def _unpack(self, target: ast.expr, value: ast.expr, name: str) -> list[ast.expr]:
        """Returns what `name` stands for after `target = value`."""
        if isinstance(target, ast.Name):
            return [value] if target.id == name else []
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple | ast.List):
            pairs = zip(target.elts, value.elts, strict=False)
            return [found for t, v in pairs for found in self._unpack(t, v, name)]
        return []

    def _each(self, target: ast.expr, values: ast.expr, name: str) -> list[ast.expr]:
        """Returns what `name` stands for in `for target in values`."""
        parts = target.elts if isinstance(target, ast.Tuple) else [target]
        called = _called(values)
        if isinstance(values, ast.Call) and called:
            if called == "zip":
                pairs = zip(parts, values.args, strict=False)
                return [found for t, v in pairs for found in self._each(t, v, name)]
            if called == "enumerate":
                return self._each(parts[-1], values.args[0], name)
            if called in ("sorted", "reversed", "list", "tuple", "tqdm"):
                return self._each(target, values.args[0], name)
            if isinstance(values.func, ast.Attribute):
                return self._each_of_dictionary(target, values.func.value, called, name)
        elements: list[ast.expr] = []
        for each in self._written(values, ast.Tuple, ast.List, ast.Set):
            elements += each.elts
        for each in self._written(values, ast.Dict):
            elements += [key for key in each.keys if key is not None]
        return [found for element in elements for found in self._unpack(target, element, name)]

    def _each_of_dictionary(
        self, target: ast.expr, dictionary: ast.expr, method: str, name: str
    ) -> list[ast.expr]:
        found: list[ast.expr] = []
        for each in self._written(dictionary, ast.Dict):
            for key, value in zip(each.keys, each.values, strict=True):
                pair = ast.Tuple([key or ast.Constant(None), value], ast.Load())
                element = {"keys": pair.elts[0], "values": value, "items": pair}.get(method)
                if element is not None:
                    found += self._unpack(target, element, name)
        return found

    def _written(self, node: ast.expr, *kinds: type[ast.expr]) -> list[Any]:
        """Returns the literals of some kinds that an expression is, directly or by its name."""
        if isinstance(node, kinds):
            return [node]
        if isinstance(node, ast.Name):
            return [value for value in self._values(node, node.id) if isinstance(value, kinds)]
        return []

    def _arguments(self, function: str, position: int, name: str) -> list[ast.expr]:
        """Returns what the calls of a function give for one of its parameters."""
        found: list[ast.expr] = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == function:
                found += node.args[position : position + 1]
                found += [word.value for word in node.keywords if word.arg == name]
        return found


def checkpoints_loaded(tree: ast.Module) -> tuple[set[str], list[str]]:
    """Finds the checkpoints that a piece of code loads, weights or card.

    Returns:
        Their names, and the calls whose names are not written out: as a string, as the variable of a loop over strings,
        or as a constant.
    """
    literals = _Literals(tree)
    names: set[str] = set()
    unknown = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or _called(node) not in _LOADERS:
            continue
        given = next((word.value for word in node.keywords if word.arg == "name"), None)
        try:
            names |= literals.strings(node.args[0] if node.args else given)
        except NotWrittenOut:
            unknown.append(ast.unparse(node))
    return names, unknown


def recipes_used(tree: ast.Module) -> set[str] | None:
    """Returns the names of the recipes that a piece of code takes, or nothing if it uses `RECIPES` in another way."""
    literals = _Literals(tree)
    names: set[str] = set()
    taken = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and getattr(node.value, "id", "") == "RECIPES":
            taken += 1
            try:
                names |= literals.strings(node.slice)
            except NotWrittenOut:
                return None
    mentioned = sum(isinstance(n, ast.Name) and n.id == "RECIPES" for n in ast.walk(tree))
    return names if mentioned == taken else None


def _recipe_entries() -> dict[str, Any]:
    """Returns the registry of recipes, which imports no network."""
    if module_file("companion.recipes.registry") is None:
        return {}
    entries: dict[str, Any] = importlib.import_module("companion.recipes.registry").ENTRIES
    return entries


# --- all of it ---------------------------------------------------------------------------------------------


@dataclass
class Dependencies:
    """What the outputs of a notebook depend on, beside its own code.

    Attributes:
        modules: of `companion`.
        checkpoints: names.
        recipes: names.
        records: files of committed measurements.
        claims: ids.
        unknown: calls that load a checkpoint whose name is not written out.
    """

    modules: set[str] = field(default_factory=set)
    checkpoints: set[str] = field(default_factory=set)
    recipes: set[str] = field(default_factory=set)
    records: set[Path] = field(default_factory=set)
    claims: set[str] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)


def is_neutral(module: str) -> bool:
    """Says whether a module, or the package that it is in, is declared as one through which no number passes."""
    return any(module == name or module.startswith(f"{name}.") for name in NEUTRAL)


def card_of(name: str) -> dict[str, Any]:
    """Reads the card of a shipped checkpoint; empty if there is none."""
    path = CHECKPOINTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def dependencies(cells: Iterable[str]) -> Dependencies:
    """Follows what code cells use through the package.

    Args:
        cells: their sources.
    """
    source = "\n".join(python_of(cell) for cell in cells)
    tree = wordless(source)
    found = Dependencies()
    found.checkpoints, found.unknown = checkpoints_loaded(tree)
    found.records = {path for name in _RECORD.findall(source) if (path := BOOK / name).is_file()}
    found.claims = {
        str(node.args[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "claim"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }
    waiting = used_modules(tree)
    if "RECIPES" in _names_used(tree) and (entries := _recipe_entries()):
        names = recipes_used(tree)
        found.recipes = set(entries) if names is None else names & set(entries)
        waiting |= {f"companion.recipes.{entries[name].module}" for name in found.recipes}
    while True:
        # A checkpoint's network is built from the card, which names its class.
        waiting |= {
            str(card["model"]).rpartition(".")[0]
            for name in found.checkpoints
            if "model" in (card := card_of(name))
        }
        waiting -= found.modules
        if not waiting:
            break
        module = waiting.pop()
        # Importing a.b.c runs a and a.b too.
        waiting |= {module.rsplit(".", k)[0] for k in range(1, module.count(".") + 1)}
        found.modules.add(module)
        path = module_file(module)
        if path is None or is_neutral(module):
            continue
        waiting |= _module(path).uses
        found.checkpoints |= _module(path).checkpoints
    found.modules = {m for m in found.modules if module_file(m) and not is_neutral(m)}
    return found


def _hash_json(digest: Any, content: object) -> None:
    digest.update(json.dumps(content, sort_keys=True, default=repr).encode() + b"\0")


def source_hash(notebook: nbformat.NotebookNode) -> str:
    """Hashes the code cells and what they stand on."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    found = dependencies(cells)
    digest = hashlib.sha256()
    for cell in cells:
        digest.update(cell.strip().encode() + b"\0")
    for module in sorted(found.modules):
        path = module_file(module)
        assert path is not None
        digest.update(f"{module}\0{_module(path).meaning}\0".encode())
    for name in sorted(found.checkpoints):
        card = {k: v for k, v in card_of(name).items() if k not in CIRCUMSTANCES}
        _hash_json(digest, [name, card])
    entries = _recipe_entries() if found.recipes else {}
    for name in sorted(found.recipes):
        _hash_json(digest, [name, entries[name].kind, entries[name].settings])
    for path in sorted(found.records):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    if found.claims:
        registry = yaml.safe_load((BOOK / "claims.yml").read_text(encoding="utf-8"))
        for id in sorted(found.claims & set(registry)):
            _hash_json(digest, [id, registry[id]["text"], registry[id]["verdict"]])
    return digest.hexdigest()
