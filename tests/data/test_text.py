"""The documentation of Python's standard library as a corpus."""

import sys
import time

import pytest

from companion import data
from companion.data import text


@pytest.fixture(scope="module")
def documents():
    return data.standard_library_text()


def test_there_is_a_lot_of_it(documents):
    assert len(documents) > 150
    assert sum(len(document.text) for document in documents) > 500_000


def test_sorted_unique_public_names(documents):
    names = [document.name for document in documents]
    assert names == sorted(set(names))
    assert not [name for name in names if any(part.startswith("_") for part in name.split("."))]
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
    assert not [name for name in names if "test" in name.split(".")]


def test_it_is_the_documentation_and_not_the_code(documents):
    by_name = {document.name: document.text for document in documents}
    import json

    assert by_name["json"].startswith(json.__doc__.strip()[:60])
    assert "Serialize ``obj``" in by_name["json"]
    assert "def dumps(" not in by_name["json"]


def test_minimum_length(documents):
    assert min(len(document.text) for document in documents) >= 400
    assert (
        len(data.standard_library_text(5000)) < len(documents) < len(data.standard_library_text(0))
    )
    with pytest.raises(ValueError, match="minimum_length"):
        data.standard_library_text(-1)


def test_the_second_call_is_free(documents):
    start = time.perf_counter()
    assert data.standard_library_text() == documents
    assert time.perf_counter() - start < 0.1


def test_private_and_nested_definitions_are_left_out(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        '"""Of the module."""\n'
        "def public():\n"
        '    """Of a function."""\n'
        "    def inner():\n"
        '        """Of nobody."""\n'
        "class Thing:\n"
        '    """Of a class."""\n'
        "    async def method(self):\n"
        '        """Of a method.\n\n        Indented."""\n'
        "    def _hidden(self):\n"
        '        """Hidden."""\n'
    )
    assert text._docstrings(file) == [
        "Of the module.",
        "Of a function.",
        "Of a class.",
        "Of a method.\n\nIndented.",
    ]


def test_a_file_that_does_not_parse_is_passed_over(tmp_path):
    (tmp_path / "bad.py").write_text("def :")
    assert text._docstrings(tmp_path / "bad.py") == []


def test_a_python_without_sources_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(text.sysconfig, "get_path", lambda name: str(tmp_path))
    text._all_documents.cache_clear()
    try:
        with pytest.raises(OSError, match="no source of the standard library"):
            data.standard_library_text(0)
    finally:
        monkeypatch.undo()
        text._all_documents.cache_clear()
