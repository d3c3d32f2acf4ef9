"""Packages offer their names without importing the modules behind them."""

import importlib
from pathlib import Path

import pytest

from companion.faces import exports

ROOT = Path(__file__).resolve().parents[1]
FACES = sorted(
    ".".join(path.parent.relative_to(ROOT).parts)
    for path in (ROOT / "companion").rglob("__init__.py")
    if "\nmake_lazy(__name__)\n" in path.read_text(encoding="utf-8")
)


def source_of(package: str) -> str:
    return (ROOT.joinpath(*package.split(".")) / "__init__.py").read_text(encoding="utf-8")


def test_the_large_packages_are_faces():
    assert {f"companion.{name}" for name in ("data", "display", "metrics", "nn", "training")} <= {
        *FACES
    }


@pytest.mark.parametrize("package", FACES)
def test_every_name_is_the_object_of_its_module(package):
    face = importlib.import_module(package)
    offered = exports(source_of(package))
    assert sorted(offered) == sorted(face.__all__)
    for name, (home, attribute) in offered.items():
        if home == package:
            assert getattr(face, name) is importlib.import_module(f"{package}.{attribute}")
        else:
            assert getattr(face, name) is getattr(importlib.import_module(home), attribute)
    assert set(offered) <= set(dir(face))


def test_a_program_afresh_knows_no_companion_and_can_fail(afresh):
    afresh("import sys; assert not [n for n in sys.modules if n.startswith('companion')]")
    for program, said in (("print('one')", "one"), ("nothing", "NameError")):
        with pytest.raises(AssertionError, match=said):
            afresh(program)


def test_importing_a_face_imports_none_of_its_modules(afresh):
    """What `companion` itself needs at once is there anyway."""
    program = f"""
import importlib, sys, companion
for package in {FACES}:
    before = set(sys.modules)
    importlib.import_module(package)
    new = {{name for name in set(sys.modules) - before if name.startswith("companion.")}}
    assert new <= {{package, "companion.faces"}}, new
"""
    afresh(program)


def test_a_name_stays_a_name_whatever_is_imported_first(afresh):
    """`companion.metrics.fid` is a function and a module; the package offers the function."""
    program = f"""
import importlib, inspect, pkgutil
from companion.faces import exports
for package in {FACES}:
    face = importlib.import_module(package)
    for module in pkgutil.iter_modules(face.__path__):
        importlib.import_module(package + "." + module.name)
    for name, (home, attribute) in exports(inspect.getsource(face)).items():
        if home != package:
            assert getattr(face, name) is getattr(importlib.import_module(home), attribute), name
"""
    afresh(program)


def test_a_name_that_is_not_offered_is_an_attribute_error():
    face = importlib.import_module("companion.metrics")
    with pytest.raises(AttributeError, match=r"'companion\.metrics' has no attribute 'fidd'"):
        _ = face.fidd
    with pytest.raises(ImportError, match="fidd"):
        exec("from companion.metrics import fidd")


def test_names_may_be_replaced_as_in_any_module(monkeypatch):
    face = importlib.import_module("companion.metrics")
    right = face.fid
    monkeypatch.setattr(face, "fid", len)
    assert face.fid is len
    monkeypatch.undo()
    assert face.fid is right


def test_exports_reads_aliases_and_ignores_the_rest():
    source = """
from typing import TYPE_CHECKING
from os import path
if TYPE_CHECKING:
    from companion.a import b, c as d
    from companion import e
    import companion.f
if path:
    from companion.g import h
"""
    assert exports(source) == {
        "b": ("companion.a", "b"),
        "d": ("companion.a", "c"),
        "e": ("companion", "e"),
    }
