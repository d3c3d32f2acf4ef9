"""A notebook is out of date when its numbers may have changed, and not when only words have."""

import ast
import json
import shutil
from pathlib import Path

import dependencies
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from companion.faces import exports

ROOT = Path(__file__).resolve().parents[2]


def modules(*cells: str) -> set[str]:
    return {name.removeprefix("companion.") for name in dependencies.dependencies(cells).modules}


# --- words and meaning --------------------------------------------------------------------------------

BEFORE = '''"""Old."""
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["f"]
LIMIT = 3


class Settings:
    """Of it."""

    size: int = 3

    def area(self) -> int:
        """Doc."""
        return self.size**2


def f(x: "Tensor", /, *, n: int = 2) -> "Tensor":
    """Doc."""
    total: float = 0.0
    if n < 1:
        raise ValueError(f"n is {n}: too few" + "; give more")
    if n > 9:
        raise ValueError("many") from None
    assert x, "no x"
    warnings.warn("slow", stacklevel=2)
    return x * n + total  # why
'''

WORDS = [
    ('"""Old."""', '"""New words."""'),
    ('"""Old."""\n', ""),
    ('    """Of it."""\n', ""),
    ('"""Doc."""', '"""More doc.\n\n    Even more.\n    """'),
    ("# why", "# because"),
    (" too few", " give 1 or more, not {LIMIT}"),
    ('; give more"', '"'),
    ('"many"', '"too many"'),
    (', "no x"', ', f"x is {x}"'),
    (', "no x"', ""),
    ('"slow"', '"rather slow"'),
    ("n: int", "n: float"),
    (' -> "Tensor"', ""),
    ("size: int", "size: float"),
    ("from torch import Tensor", "from numpy import ndarray as Tensor"),
    ('["f"]', '["f", "Settings"]'),
    ("\n\n\nclass", "\nclass"),
    ("x * n + total", "(x * n\n            + total)"),
]

NUMBERS = [
    ("n < 1", "n < 2"),
    ("n: int = 2", "n: int = 3"),
    ("size: int = 3", "size: int = 4"),
    ("    size: int = 3\n", ""),
    ("size: int", "size: ClassVar[int]"),
    ("self.size**2", "self.size**3"),
    ("x * n + total", "x * n - total"),
    ("ValueError", "TypeError"),
    ("assert x", "assert not x"),
    ("LIMIT = 3", "LIMIT = 4"),
    ("/, *, n", "*, n"),
    ("return x", "yield x"),
]


@pytest.mark.parametrize(("old", "new"), WORDS)
def test_words_make_nothing_stale(old, new):
    assert old in BEFORE
    assert dependencies.meaning_of(BEFORE.replace(old, new)) == dependencies.meaning_of(BEFORE)


@pytest.mark.parametrize(("old", "new"), NUMBERS)
def test_code_makes_outputs_stale(old, new):
    assert old in BEFORE
    assert dependencies.meaning_of(BEFORE.replace(old, new)) != dependencies.meaning_of(BEFORE)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('a = "#1"', 'a = "#2"'),
        ('f"{x:.2f}"', 'f"{x:.3f}"'),
        ('print("one")', 'print("two")'),
        ("raise KeyError(A)", "raise KeyError(B)"),
        ('warn("slow", 1)', 'warn("slow", 2)'),
    ],
)
def test_strings_that_are_no_messages_count(one, other):
    assert dependencies.meaning_of(one) != dependencies.meaning_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("f(None)", "f()"),
        ("x[0]", "x[False]"),
        ("1", "1.0"),
        ("'1'", "1"),
        ("{**a}", "{None: a}"),
        ("a[1:]", "a[:1]"),
        ("f(*a)", "f(a)"),
        ("x if y else z", "y if x else z"),
        ("a and b", "a or b"),
        ("lambda x: 1", "lambda *x: 1"),
        ("not a", "-a"),
    ],
)
def test_the_written_form_tells_trees_apart(one, other):
    assert dependencies.meaning_of(f"v = {one}") != dependencies.meaning_of(f"v = {other}")


# --- names and modules --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "there", "not_there"),
    [
        ("from companion.metrics import fid", set(), {"metrics.fid"}),  # never used
        ("from companion.metrics import fid\nfid(a, b)", {"metrics.fid"}, {"metrics.psnr"}),
        ("from companion import metrics\nmetrics.psnr(a, b)", {"metrics.psnr"}, {"metrics.fid"}),
        ("import companion.metrics\ncompanion.metrics.ssim(a)", {"metrics.psnr"}, {"metrics.fid"}),
        ("import companion.metrics as m\nm.psnr(a, b)", {"metrics.psnr"}, {"metrics.fid"}),
        ("from companion.data import toy\ntoy.grid(3)", {"data.toy"}, {"data.downloads"}),
        ("from companion import data\ndata.toy.grid(3)", {"data.toy"}, {"data.downloads"}),
        ("from companion import data\nprint(dir(data))", {"data.toy", "data.folders"}, set()),
        ("from companion.metrics import *", {"metrics.fid", "metrics.psnr"}, set()),
        ("from companion.display import table as t\nt([])", {"display.tables"}, {"data.images"}),
        ("%matplotlib inline\nfrom companion.vae import VAE\nVAE()", {"vae", "randomness"}, set()),
    ],
)
def test_a_name_brings_its_own_module(source, there, not_there):
    found = modules(source)
    assert there <= found
    assert not not_there & found


def test_names_are_used_in_other_cells_than_they_are_imported_in():
    assert "metrics.psnr" in modules("from companion.metrics import psnr", "psnr(a, b)")


def test_imports_are_followed_through_the_package():
    # pictures → to_uint8 by its name in the face of the data
    assert "data.images" in modules("from companion.display import figure\nfigure(f)")


def test_what_builds_a_checkpoint_s_network_counts():
    found = dependencies.dependencies(['m = load_checkpoint("digit-cnn")'])
    assert found.checkpoints == {"digit-cnn"}
    assert "companion.metrics.digit_cnn" in found.modules


def test_no_number_passes_through_neutral_modules():
    """They import nothing that computes, nor do the modules that they import; no notebook uses the command line."""
    computing = {"torch", "numpy", "scipy", "sklearn", "skimage", "einops", "math", "random", "PIL"}
    waiting = [name for name in dependencies.NEUTRAL if name != "companion.cli"]
    seen = set()
    while waiting:
        name = waiting.pop()
        if name in seen or (path := dependencies.module_file(name)) is None:
            continue
        seen.add(name)
        tree = dependencies.wordless(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported = {str(node.module)}
            else:
                continue
            assert not {each.split(".")[0] for each in imported} & computing, name
            waiting += [each for each in imported if each.startswith("companion.")]
    assert {"companion.errors", "companion.files"} <= seen


def test_no_notebook_runs_the_command_line():
    for path in sorted(dependencies.BOOK.glob("[0-9][0-9]-*.ipynb")):
        assert "companion.cli" not in path.read_text(encoding="utf-8"), path.stem


# --- names of checkpoints -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ('load_checkpoint("gan")', {"gan"}),
        ('companion.load_checkpoint("gan").eval()', {"gan"}),
        ('load_card(name="gan")', {"gan"}),
        ('for name in ("gan", "vae"):\n    load_checkpoint(name)', {"gan", "vae"}),
        ('a, b = (load_checkpoint(name) for name in ["gan", "vae"])', {"gan", "vae"}),
        ('for i, name in enumerate(["gan"]):\n    load_card(name)', {"gan"}),
        ('for k, n in zip((1, 2), ("gan", "vae")):\n    load_card(n)', {"gan", "vae"}),
        ('for n, k in [("gan", 1), ("vae", 2)]:\n    load_card(n)', {"gan", "vae"}),
        ('for n, k in {"gan": 1}.items():\n    load_card(n)', {"gan"}),
        ('D = {"a": "gan", "b": "vae"}\nfor k, n in D.items():\n    load_card(n)', {"gan", "vae"}),
        ('D = {"a": "gan"}\nfor n in D.values():\n    load_card(n)', {"gan"}),
        ('D = {"a": "gan", "b": "vae"}\nload_card(D[key])', {"gan", "vae"}),
        ('NAME = "gan"\nload_card(NAME)', {"gan"}),
        ('NAMES = ("gan", "vae")\nfor n in sorted(NAMES):\n    load_card(n)', {"gan", "vae"}),
        ('def show(n):\n    load_card(n)\n\nshow("gan")\nshow(n="vae")', {"gan", "vae"}),
        ('load_card("gan" if big else "vae")', {"gan", "vae"}),
        ('for name in lines:\n    p(name)\nload_card("gan")', {"gan"}),
        # A name of another loop does not hide this one.
        ('for n in lines:\n    p(n)\nx = [load_card(n) for n in ("gan",)]', {"gan"}),
    ],
)
def test_names_of_checkpoints_are_read_from_the_code(source, names):
    found = dependencies.dependencies([source])
    assert found.checkpoints == names
    assert not found.unknown


@pytest.mark.parametrize(
    "source",
    [
        "load_checkpoint(input())",
        "load_card(f'{kind}-small')",
        "for n in names():\n    load_checkpoint(n)",
        "for n in sys.argv:\n    load_card(n)",
        "def show(n):\n    load_card(n)",
        "NAME = pick()\nload_card(NAME)",
        "NAME = NAME\nload_card(NAME)",
        "load_checkpoint()",
    ],
)
def test_names_that_are_not_written_out_are_reported(source):
    (call,) = dependencies.dependencies([source]).unknown
    assert call.startswith("load_c")


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ('RECIPES["gan"].replace(steps=3)', {"gan"}),
        ('[RECIPES[n] for n in ("gan", "vae")]', {"gan", "vae"}),
        ('RECIPES["gan"]\nlist(RECIPES)', None),
        ("RECIPES[name]", None),
        ("x = 1", set()),
    ],
)
def test_names_of_recipes_are_read_from_the_code(source, names):
    assert dependencies.recipes_used(ast.parse(source)) == names


# --- the hash -----------------------------------------------------------------------------------------

CELLS = (
    "from companion.metrics import fid",
    'net = load_checkpoint("gan")\nfid(a, b)',
    'claim("GAN-1", 3)\nopen("measurements/gan-seeds.json")',
)


@pytest.fixture
def copied(tmp_path, monkeypatch) -> Path:
    """A copy of what is hashed, for changing."""
    left_out = shutil.ignore_patterns("*.safetensors", "__pycache__", "*.ipynb", "tools", "_static")
    for name in ("companion", "book"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=left_out)
    monkeypatch.setattr(dependencies, "ROOT", tmp_path)
    monkeypatch.setattr(dependencies, "BOOK", tmp_path / "book")
    monkeypatch.setattr(dependencies, "CHECKPOINTS", tmp_path / "companion" / "checkpoints")
    return tmp_path


def hash_of(*cells: str) -> str:
    return dependencies.source_hash(new_notebook(cells=[new_code_cell(cell) for cell in cells]))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_the_hash_follows_what_can_change_numbers(copied):
    hashes = [hash_of(*CELLS)]
    changes = [
        lambda: edit(copied / "companion/metrics/fid.py", "    return ", "    return 0 * "),
        lambda: edit(copied / "companion/gan.py", "    return ", "    return 0 * "),
        lambda: edit(copied / "companion/checkpoints/gan.json", '"seed": ', '"seed": 1'),
        lambda: edit(copied / "book/measurements/gan-seeds.json", "1", "2"),
        lambda: edit(copied / "book/claims.yml", "GAN-1:\n", "GAN-1: {text: a, verdict: b}\nX:\n"),
    ]
    for change in changes:
        change()
        hashes.append(hash_of(*CELLS))
    assert len(set(hashes)) == len(changes) + 1
    assert hash_of(*CELLS[:2], CELLS[2] + "\n1") not in hashes


def test_the_hash_does_not_follow_words_and_strangers(copied):
    before = hash_of(*CELLS)
    edit(copied / "companion/metrics/fid.py", '"""', '"""Better words. ')
    for name in ("errors", "files"):
        (copied / f"companion/{name}.py").write_text("x = 1\n", encoding="utf-8")
    (copied / "companion/metrics/psnr.py").write_text("x = 1\n", encoding="utf-8")
    (copied / "companion/vae.py").write_text("x = 1\n", encoding="utf-8")
    face = copied / "companion/metrics/__init__.py"
    edit(
        face, "if TYPE_CHECKING:\n", "if TYPE_CHECKING:\n    from companion.metrics.new import n\n"
    )
    assert "n" in exports(face.read_text(encoding="utf-8"))
    edit(copied / "book/claims.yml", "GAN-2:\n", "GAN-2: {text: a, verdict: b}\nX:\n")
    card = copied / "companion/checkpoints/gan.json"
    content = json.loads(card.read_text(encoding="utf-8"))
    content |= {"packages": {}, "seconds": 1.0, "device": "another"}
    card.write_text(json.dumps(content), encoding="utf-8")
    assert hash_of(*CELLS) == before
