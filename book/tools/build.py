"""Builds the book from the committed notebooks; warnings are errors. What is built from the same files stands."""

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "_build" / "html"
# In the built book: a hash of all that it was built from.
STAMP = ".built-from"
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


def inputs_hash(root: Path) -> str:
    """Hashes everything that the pages are made from: the book's folder, the configuration and the pinned packages."""
    files = [root / name for name in ("_config.yml", "_toc.yml", "requirements.txt")]
    files += sorted(
        path
        for path in (root / "book").rglob("*")
        if path.is_file()
        and path.suffix != ".pyc"
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    digest = hashlib.sha256(sys.version.encode())
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def is_built(root: Path) -> bool:
    """Says whether the book stands in `_build` as these files would build it."""
    stamp = root / "_build" / "html" / STAMP
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == inputs_hash(root)


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
    state = "was built already"
    if not is_built(ROOT):
        state = "is built"
        built_from = inputs_hash(ROOT)
        (OUTPUT / STAMP).unlink(missing_ok=True)
        if status := build():
            print("The book was not built: see the warnings above.", file=sys.stderr)
            return status
        drop_unused(OUTPUT / "_static" / "mathjax", MATHJAX_KEPT)
        (OUTPUT / STAMP).write_text(built_from, encoding="utf-8")
    print(f"The book {state}. Open {(OUTPUT / 'book' / 'index.html').as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
