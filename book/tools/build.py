"""Builds the book from the committed notebooks; warnings are errors."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "_build" / "html"
# MathJax's package brings 24 MB, every way of reading and writing formulas in 15 languages. The pages use one script,
# its fonts, the TeX extensions that it loads when a formula asks for them and, on a reader's wish, the parts that
# speak formulas aloud in English.
MATHJAX_KEPT = (
    "tex-chtml.js",
    "input/tex/extensions/",
    "output/chtml/",
    "a11y/",
    "sre/mathmaps/base.json",
    "sre/mathmaps/en.json",
)


def build() -> int:
    """Runs Jupyter Book, whose words are shown only if something is wrong; returns its exit status."""
    program = Path(sys.executable).with_name("jupyter-book")
    # --all: without it a changed stylesheet or script is not copied.
    command = [str(program), "build", "-W", "--keep-going", "--quiet", "--all", "."]
    result = subprocess.run(
        command, cwd=ROOT, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode:
        print(result.stdout, file=sys.stderr)
    return result.returncode


def drop_unused(folder: Path, kept: tuple[str, ...]) -> None:
    """Removes all files of a folder but those whose relative path begins with a kept one."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.relative_to(folder).as_posix().startswith(kept):
            path.unlink()


def main() -> int:
    if status := build():
        print("The book was not built: see the warnings above.", file=sys.stderr)
        return status
    drop_unused(OUTPUT / "_static" / "mathjax", MATHJAX_KEPT)
    print(f"The book is built. Open {(OUTPUT / 'book' / 'index.html').as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
