"""The contracts about who imports whom name every model, and each of them can be broken."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINTER = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
    "importlinter"
]
CONTRACTS = {contract["name"]: contract for contract in LINTER["contracts"]}


def models() -> set[str]:
    """The modules between `nn` and `training` in the layers, as far as they have been written."""
    layers = next(c["layers"] for c in LINTER["contracts"] if c["type"] == "layers")
    between = layers[layers.index("training") + 1 : layers.index("nn")]
    named = {name for layer in between for name in re.findall(r"\w+", layer)}
    package = ROOT / "companion"
    return {f"companion.{n}" for n in named if any((package / p).exists() for p in (n, f"{n}.py"))}


def test_both_contracts_name_every_model():
    assert len(models()) >= 6
    assert set(CONTRACTS["Training knows no model"]["forbidden_modules"]) == models()
    assert set(CONTRACTS["No model knows how it is trained"]["source_modules"]) == models()


@pytest.mark.parametrize(
    ("file", "line", "name"),
    [
        ("training/ema.py", "import companion.vae_gan", "Training knows no model"),
        ("vae.py", "from companion.training import EMA", "No model knows how it is trained"),
        ("nn/encoder.py", "from companion import metrics", "The parts of networks know no metric"),
        ("files.py", "import companion.data", "Rooms of the house"),
    ],
)
def test_an_import_that_is_not_allowed_is_found(tmp_path, file, line, name):
    """In a copy, where one such import is written into one file."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    code = shutil.ignore_patterns("*.safetensors", "__pycache__")
    shutil.copytree(ROOT / "companion", tmp_path / "companion", ignore=code)
    with (tmp_path / "companion" / file).open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    check = "from importlinter.cli import lint_imports_command as check; check(['--no-cache'])"
    found = subprocess.run(
        [sys.executable, "-c", check],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1, found.stdout + found.stderr
    assert re.search(rf"{name}.* BROKEN", found.stdout)
