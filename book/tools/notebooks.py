"""Executes the book's notebooks and writes them back in their normal form; the only writer of notebooks.

    python book/tools/notebooks.py                 every chapter whose code or package sources have changed
    python book/tools/notebooks.py --all           every chapter
    python book/tools/notebooks.py --only 04-fid   one chapter

A notebook is cleared, run from top to bottom in a new kernel and written with normalised metadata: a hash of its
code and of the `companion` modules it uses (so that a test can tell when outputs are out of date) and the time
that it took. The page of execution times is made from those times. `problems()` finds what a committed notebook
must not have.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import io
import json
import os
import re
import sys
import time
import tokenize
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from companion.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
PACKAGE = ROOT / "companion"
CELL_TIMEOUT = 240
MAX_BYTES = 1_500_000
MAX_SECONDS = 120
# A chapter's text shows its own run time between these marks; the runner keeps it true.
RUNTIME = re.compile(r"<!--runtime-->.*?<!--/runtime-->", re.DOTALL)
_RECORD = re.compile(r"measurements/[\w-]+\.json")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
KEPT_CELL_METADATA = {"tags", "nbval_reason", "mystnb"}


# --- what a notebook depends on ----------------------------------------------------------------------------


def chapters() -> list[Path]:
    """Returns the notebooks of the book in order."""
    return sorted(BOOK.glob("[0-9][0-9]-*.ipynb"))


def code_of(notebook: nbformat.NotebookNode) -> list[str]:
    """Returns the sources of the code cells."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def meaning_of(source: str) -> str:
    """Strips comments, docstrings and blank lines from a module, so that better words do not make outputs stale."""
    lines = source.splitlines()
    drop: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                drop.update(range(first.lineno, first.end_lineno + 1))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    kept = [line.rstrip() for i, line in enumerate(lines, 1) if i not in drop]
    return "\n".join(line for line in kept if line)


def imported_modules(source: str) -> set[str]:
    """Returns the `companion` modules that a piece of code names in its import statements."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            # `from companion.data import toy` may name a module.
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in found if name.split(".")[0] == "companion"}


def module_file(name: str) -> Path | None:
    """Returns the file of a `companion` module, or nothing if the name is not a module's."""
    path = ROOT.joinpath(*name.split("."))
    for candidate in (path / "__init__.py", path.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


def loaded_checkpoints(source: str) -> set[str]:
    """Returns the names in calls of `load_checkpoint` with a literal name."""
    return {
        node.args[0].value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", getattr(node.func, "attr", "")) == "load_checkpoint"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }


def python_of(source: str) -> str:
    """Returns a cell without the lines that are IPython's, not Python's."""
    return "\n".join(
        "" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines()
    )


def dependencies(cells: Iterable[str]) -> tuple[list[Path], set[str]]:
    """Follows imports from code cells through the package.

    Returns:
        The files of the `companion` modules that are used, and the names of checkpoints that are loaded.
    """
    sources = [python_of(cell) for cell in cells]
    waiting = {name for source in sources for name in imported_modules(source)}
    checkpoints = {name for source in sources for name in loaded_checkpoints(source)}
    files: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        # Importing a.b.c runs a and a.b too.
        parents = {name.rsplit(".", k)[0] for k in range(1, name.count(".") + 1)}
        waiting |= parents - files.keys()
        path = module_file(name)
        if path is None or name in files:
            continue
        files[name] = path
        source = path.read_text(encoding="utf-8")
        waiting |= imported_modules(source) - files.keys()
        checkpoints |= loaded_checkpoints(source)
    return sorted(set(files.values())), checkpoints


def measurements_read(cells: Iterable[str]) -> list[Path]:
    """Returns the committed records of measurements that code cells name."""
    names = {name for cell in cells for name in _RECORD.findall(cell)}
    return sorted(path for name in names if (path := BOOK / name).is_file())


def source_hash(notebook: nbformat.NotebookNode) -> str:
    """Hashes the code cells and what they stand on: the package's modules, checkpoints and recorded measurements."""
    cells = code_of(notebook)
    files, checkpoints = dependencies(cells)
    digest = hashlib.sha256()
    for cell in cells:
        digest.update(cell.strip().encode() + b"\0")
    for path in files:
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0")
        digest.update(meaning_of(path.read_text(encoding="utf-8")).encode() + b"\0")
    for name in sorted(checkpoints):
        card = PACKAGE / "checkpoints" / f"{name}.json"
        if card.is_file():
            digest.update(json.loads(card.read_text(encoding="utf-8"))["sha256"].encode())
    for path in measurements_read(cells):
        digest.update(path.name.encode() + b"\0")
        digest.update(path.read_bytes())
    return digest.hexdigest()


# --- running and writing -----------------------------------------------------------------------------------


def execute(path: Path) -> nbformat.NotebookNode:
    """Runs a notebook in a new kernel and returns it in its normal form, with new outputs."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(BOOK)}},
    )
    # The kernel's own warning about unencrypted local sockets is no concern of the reader's.
    client.extra_arguments = ["--IPKernelApp.log_level=40"]
    begin = time.perf_counter()
    client.execute()
    return normalise(notebook, seconds=time.perf_counter() - begin)


def normalise(notebook: nbformat.NotebookNode, seconds: float) -> nbformat.NotebookNode:
    """Brings an executed notebook into the form in which it is committed."""
    rounded = max(1, round(seconds))
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict(
            {key: cell.metadata[key] for key in sorted(KEPT_CELL_METADATA & cell.metadata.keys())}
        )
        if cell.cell_type == "markdown":
            cell.source = RUNTIME.sub(
                f"<!--runtime-->{in_words(rounded)}<!--/runtime-->", cell.source
            )
            cell.pop("attachments", None)
        else:
            cell.outputs = [normal_output(output) for output in cell.outputs]
    name_cells(notebook)
    notebook.metadata = nbformat.from_dict(
        {
            "companion": {
                "cores": os.cpu_count(),
                "seconds": rounded,
                "source_sha256": source_hash(notebook),
            },
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def in_words(seconds: int) -> str:
    """Words a run time: "41 seconds"."""
    return "1 second" if seconds == 1 else f"{seconds} seconds"


def normal_output(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drops what would break a viewer without the kernel that made the output."""
    if "data" in output:
        output.data.pop(WIDGET_VIEW, None)
    return output


def name_cells(notebook: nbformat.NotebookNode) -> None:
    """Gives each cell an id that depends on its source alone, so that a second run changes nothing."""
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        name = hashlib.sha256(f"{cell.cell_type}\0{cell.source}".encode()).hexdigest()[:12]
        seen[name] = seen.get(name, 0) + 1
        cell.id = name if seen[name] == 1 else f"{name}-{seen[name]}"


def execution_times() -> str:
    """Words the page of execution times from the times that the notebooks carry."""
    lines = [
        "# Execution times",
        "",
        "How long each chapter took when its outputs were made, from starting the kernel to the last cell. "
        "The times come from the committed notebooks themselves; `make notebooks` measures them anew.",
        "",
        "| chapter | seconds | CPU cores |",
        "|---|--:|--:|",
    ]
    total = 0
    for path in chapters():
        record = nbformat.read(path, as_version=4).metadata.get("companion", {})
        if "seconds" in record:
            total += record["seconds"]
            lines.append(f"| [](/book/{path.stem}) | {record['seconds']} | {record['cores']} |")
    lines += [f"| all | {total} | |", ""]
    return "\n".join(lines)


# --- what a committed notebook must not have ---------------------------------------------------------------

_LOCAL = re.compile(r"(?<![\w.])(/home/|/root/|/tmp/|/work/|/Users/|[A-Z]:\\\\Users)")
_ADDRESS = re.compile(r"\bat 0x[0-9a-f]{6,}")
_IMAGE = re.compile(r"<img\b[^>]*>")
_RULE = re.compile(r"\|?(\s*:?-+:?\s*\|)+(\s*:?-+:?\s*)?")
_ALT = re.compile(r'\balt="([^"]+)"')


def text_of(output: nbformat.NotebookNode) -> str:
    """Returns all text of an output, images left out."""
    parts = [output.get("text", "")]
    parts += [
        v if isinstance(v, str) else json.dumps(v)
        for k, v in output.get("data", {}).items()
        if not k.startswith("image/")
    ]
    return re.sub(r"base64,[A-Za-z0-9+/=]+", "base64,", "".join(parts))


def cell_problems(cell: nbformat.NotebookNode) -> list[str]:
    """Finds what is wrong with the outputs of one code cell."""
    found = []
    tags = cell.metadata.get("tags", [])
    if "nbval-ignore-output" in tags and not cell.metadata.get("nbval_reason"):
        found.append("ignores its output for nbval without metadata nbval_reason")
    if extra := set(cell.metadata) - KEPT_CELL_METADATA:
        found.append(f"has metadata {sorted(extra)}")
    for output in cell.outputs:
        text = text_of(output)
        if output.output_type == "error":
            found.append(f"holds the error {output.ename}")
        if output.get("name") == "stderr":
            found.append(f"wrote to stderr: {output.text.strip()[:120]!r}")
        if match := _LOCAL.search(text):
            found.append(f"shows a local path: {text[match.start() : match.start() + 60]!r}")
        if match := _ADDRESS.search(text):
            found.append(f"shows an object's address: {match.group()!r}")
        data = output.get("data", {})
        if WIDGET_VIEW in data:
            found.append("holds a widget that no viewer can show")
        if "image/png" in data or "image/svg+xml" in data or "image/jpeg" in data:
            found.append(
                "shows a bare image: wrap it in companion.display.figure, which asks for alt text"
            )
        for tag in _IMAGE.findall(data.get("text/html", "")):
            alt = _ALT.search(tag)
            if not alt or not alt.group(1).strip():
                found.append("shows an image without alt text")
    return found


def nameless_columns(source: str) -> list[str]:
    """Finds the tables of a text in which a column has no name: a reader who cannot see the table needs every one."""
    found = []
    lines = source.splitlines()
    for head, rule in pairwise(lines):
        if not _RULE.fullmatch(rule.strip()) or "|" not in head:
            continue
        # A bar within a formula or code is not the border of a column.
        plain = re.sub(r"\$[^$]*\$|`[^`]*`", "x", head).replace(r"\|", "x").strip()
        if not all(name.strip() for name in plain.removeprefix("|").removesuffix("|").split("|")):
            found.append(f"has a table with a column without a name: {head.strip()!r}")
    return found


def problems(path: Path) -> list[str]:
    """Finds everything that keeps a committed notebook from being in order, one sentence each."""
    notebook = nbformat.read(path, as_version=4)
    found, count = [], 0
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            found += [f"cell {index} {problem}" for problem in nameless_columns(cell.source)]
        if cell.cell_type != "code":
            continue
        if not cell.source.strip():
            found.append(f"cell {index} is empty")
            continue
        count += 1
        if cell.execution_count != count:
            found.append(
                f"cell {index} has count {cell.execution_count}, {count} in a run from top to bottom"
            )
        found += [f"cell {index} {problem}" for problem in cell_problems(cell)]
    record = notebook.metadata.get("companion", {})
    if set(notebook.metadata) != {"companion", "kernelspec", "language_info"}:
        found.append(
            f"notebook metadata {sorted(notebook.metadata)} are not as the runner writes them"
        )
    if record.get("source_sha256") != source_hash(notebook):
        found.append(
            f"its code or the package changed since it was run: make notebooks ONLY={path.stem}"
        )
    if record.get("seconds", MAX_SECONDS + 1) > MAX_SECONDS:
        found.append(f"took {record.get('seconds')} s; {MAX_SECONDS} s is the limit")
    if (size := path.stat().st_size) > MAX_BYTES:
        found.append(f"has {size:,} bytes; {MAX_BYTES:,} is the limit")
    return found


# --- command line ------------------------------------------------------------------------------------------


def select(only: str | None, everything: bool) -> list[Path]:
    """Chooses the notebooks to run.

    Raises:
        SystemExit: if `only` names no chapter.
    """
    paths = chapters()
    if only:
        chosen = [
            path for path in paths if path.stem == only.removesuffix(".ipynb").removeprefix("book/")
        ]
        if not chosen:
            names = ", ".join(path.stem for path in paths)
            raise SystemExit(f"no chapter is called {only!r}. Chapters: {names}")
        return chosen
    if everything:
        return paths
    return [
        path
        for path in paths
        if (nb := nbformat.read(path, as_version=4))
        .metadata.get("companion", {})
        .get("source_sha256")
        != source_hash(nb)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Execute the book's notebooks and write them in their normal form."
    )
    parser.add_argument("--only", help="one chapter, such as 04-fid")
    parser.add_argument(
        "--all", action="store_true", help="every chapter, also those that are up to date"
    )
    arguments = parser.parse_args()
    failed = 0
    chosen = select(arguments.only, arguments.all)
    if not chosen:
        print("Every notebook is up to date.")
    for path in chosen:
        print(f"{path.stem} … ", end="", flush=True)
        try:
            notebook = execute(path)
        except CellExecutionError as error:
            print(f"failed; the file is unchanged.\n{error}", file=sys.stderr)
            failed += 1
            continue
        write_atomically(path, (nbformat.writes(notebook) + "\n").encode())
        print(f"{notebook.metadata['companion']['seconds']} s")
        for problem in problems(path):
            print(f"  {problem}")
            failed += 1
    write_atomically(BOOK / "execution-times.md", execution_times().encode())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
