"""Builds the book from the committed notebooks; warnings are errors."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "_build" / "html"
# MathJax's package brings 24 MB, of which a page uses one script and its fonts.
MATHJAX_KEPT = ("tex-chtml-full.js", "output/chtml/fonts", "sre")


def build() -> int:
    """Runs Jupyter Book; returns its exit status."""
    command = [
        Path(sys.executable).with_name("jupyter-book"),
        "build",
        "-W",
        "--keep-going",
        "--quiet",
        "--all",
        ".",
    ]
    return subprocess.run([str(part) for part in command], cwd=ROOT, check=False).returncode


def main() -> int:
    if status := build():
        print("The book was not built: see the warnings above.", file=sys.stderr)
        return status
    print(f"The book is built. Open {(OUTPUT / 'index.html').as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
