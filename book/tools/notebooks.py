"""Executes the book's notebooks and writes them back in their normal form; the only writer of notebooks.

    python book/tools/notebooks.py                 every chapter whose code or package sources have changed
    python book/tools/notebooks.py --all           every chapter
    python book/tools/notebooks.py --only 04-fid   one chapter
    python book/tools/notebooks.py --lengths       words and lines of code before the exercises; runs nothing

A notebook is cleared, run from top to bottom in a new kernel and written with normalised metadata: a hash of what its
outputs depend on (`dependencies.py`), the time that it took and the time of each code cell. If a reader would see no
difference, the outputs that are committed stay, to the byte. The page of execution times is made from those times.
`problems()` finds what a committed notebook must not have.

Notebooks are recorded on a CPU. Their live cells ask for float32; when they are checked, a cell gets six times what is
recorded here, so that a slower or busier machine is not a failure. On a processor with bfloat16 or AVX-512,
`--like-avx2` imitates, roughly, one that has neither.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import numpy as np
from dependencies import BOOK, dependencies, source_hash
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

from companion.files import write_atomically

# Of a run that records; the limits of what is recorded are below.
CELL_TIMEOUT = 1200
MAX_BYTES = 1_500_000
# On two cores of any kind.
MAX_SECONDS = 120
MAX_CELL_SECONDS = 45
# What a cell gets when the notebooks are checked: so many times its recorded time, and no less than that many seconds.
PATIENCE = 6
LEAST_PATIENCE = 240
# A chapter's text shows its own run time between these marks; the runner keeps it true.
RUNTIME = re.compile(r"<!--runtime-->.*?<!--/runtime-->", re.DOTALL)
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
KEPT_CELL_METADATA = {"tags", "nbval_reason", "mystnb"}
LIKE_AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


# --- the notebooks ------------------------------------------------------------------------------------------


def chapters() -> list[Path]:
    """Returns the notebooks of the book in order."""
    return sorted(BOOK.glob("[0-9][0-9]-*.ipynb"))


def code_of(notebook: nbformat.NotebookNode) -> list[str]:
    """Returns the sources of the code cells."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def time_limit(recorded: float | None) -> float:
    """Returns the seconds that a cell gets when notebooks are checked, from those that it took when it was recorded."""
    return max(LEAST_PATIENCE, PATIENCE * (recorded or 0))


# --- running and writing -----------------------------------------------------------------------------------


def execute(path: Path, environment: dict[str, str] | None = None) -> nbformat.NotebookNode:
    """Runs a notebook in a new kernel and returns it in its normal form, with new outputs.

    Args:
        path: the notebook; its file is not changed.
        environment: variables that the kernel gets in addition.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    times: list[float] = []

    def begin_cell(**_: object) -> None:
        times.append(-time.perf_counter())

    def end_cell(**_: object) -> None:
        times[-1] += time.perf_counter()

    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(BOOK)}},
        on_cell_execute=begin_cell,
        on_cell_executed=end_cell,
    )
    # The kernel's own warning about unencrypted local sockets is no concern of the reader's.
    client.extra_arguments = ["--IPKernelApp.log_level=40"]
    begin = time.perf_counter()
    # What is recorded is what a reader without a GPU gets.
    client.execute(env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **(environment or {})})
    return normalise(notebook, seconds=time.perf_counter() - begin, cell_seconds=times)


def normalise(
    notebook: nbformat.NotebookNode, seconds: float, cell_seconds: list[float]
) -> nbformat.NotebookNode:
    """Brings an executed notebook into the form in which it is committed.

    Args:
        notebook: it is changed.
        seconds: of the whole run.
        cell_seconds: of each code cell.
    """
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
                "cell_seconds": [round(each, 1) for each in cell_seconds],
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


# --- whether a reader sees a difference ----------------------------------------------------------------------

_PICTURE = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")
# Two runs may differ by the last digits of a number and by the shade of a curve's edge, and by no more: levels of 255.
_SHADE = 32


class _Seen(NamedTuple):
    """An output as a reader sees it."""

    kind: str
    text: str
    pictures: tuple[bytes, ...]


def _seen(output: nbformat.NotebookNode) -> _Seen:
    data = dict(output.get("data", {}))
    text = json.dumps([output.get("name"), output.get("text"), data], sort_keys=True)
    pictures = tuple(base64.b64decode(code) for code in _PICTURE.findall(text))
    text = _PICTURE.sub("PICTURE", text)
    # A measured number is shown with a few of its digits; all of them stand beside it.
    return _Seen(output.output_type, re.sub(r'value=\\"[^"\\]*\\"', "VALUE", text), pictures)


def _alike(one: bytes, other: bytes) -> bool:
    """Says whether two PNG files show the same, but for the shade of a few edges."""
    if one == other:
        return True
    pixels = []
    for content in (one, other):
        with Image.open(io.BytesIO(content)) as image:
            pixels.append(np.asarray(image.convert("RGB"), dtype=np.int16))
    same_size = pixels[0].shape == pixels[1].shape
    return same_size and int(np.abs(pixels[0] - pixels[1]).max()) <= _SHADE


def _cell_alike(old: nbformat.NotebookNode, new: nbformat.NotebookNode) -> bool:
    if (old.cell_type, old.source) != (new.cell_type, new.source):
        return RUNTIME.sub("", old.source) == RUNTIME.sub("", new.source)
    if new.cell_type != "code" or "nbval-ignore-output" in new.metadata.get("tags", []):
        return True
    for one, other in zip_longest(map(_seen, old.outputs), map(_seen, new.outputs)):
        if one is None or other is None or one[:2] != other[:2]:
            return False
        if not all(map(_alike, one.pictures, other.pictures)):
            return False
    return True


def settle(old: nbformat.NotebookNode, new: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Returns the notebook to be committed after a run: with the outputs and times that were committed, if they stand.

    They stand if a reader would see no difference: the same text, the same numbers as they are shown, the same pictures
    but for the shade of a few edges. That is stricter than what nbval compares, which leaves numbers and pictures out,
    so that a changed formula or a changed colour comes into the book.

    Args:
        old: the committed notebook.
        new: the same, run again and normalised.
    """
    record = old.metadata.get("companion", {})
    cells = list(zip_longest(old.cells, new.cells))
    # Times that break the limits do not stand: they may be of a busy machine. Nor do those of other cells.
    count = sum(cell.cell_type == "code" for cell in new.cells)
    stale = len(record.get("cell_seconds", [])) != count or over_time(record)
    if stale or not all(a and b and _cell_alike(a, b) for a, b in cells):
        return new
    for before, after in cells:
        if after.cell_type == "code":
            after.outputs = before.outputs
    settled = normalise(new, record["seconds"], record["cell_seconds"])
    settled.metadata["companion"]["cores"] = record["cores"]
    return settled


# --- the length of a chapter -------------------------------------------------------------------------------

#: Chapters whose length is held to the limits; each enters when it has its second edition.
MEASURED_OUT: frozenset[str] = frozenset()
# (words, lines of visible code) before the exercises; the larger ones where a chapter has ten claims or more.
LENGTH, LENGTH_WITH_MANY_CLAIMS, MANY_CLAIMS = (5000, 500), (6500, 700), 10

_EXERCISES = re.compile(r"^#+ +.*\bExercises\b", re.MULTILINE)
_FENCE = re.compile(
    r"^(?P<mark>`{3,}|:{3,})(?P<head>.*)\n(?P<body>(?:.*\n)*?)(?P=mark) *$", re.MULTILINE
)
_HIDDEN = {"hide-input", "hide-cell", "remove-input", "remove-cell"}


class Length(NamedTuple):
    """What stands before the exercises: words of prose and lines of visible code, what is folded left out."""

    words: int
    lines: int


def prose_of(markdown: str) -> str:
    """Returns the words that a reader of the page reads at once: no folds, directives, comments and addresses."""

    def unfold(match: re.Match[str]) -> str:
        head, body = match["head"], match["body"]
        if "dropdown" in head or ":class: dropdown" in body or "figure" in head or "math" in head:
            return " "
        options = re.compile(r"^(:[\w-]+:.*|---\n(?:.*\n)*?---)$", re.MULTILINE)
        return options.sub("", prose_of(body))

    text = _FENCE.sub(unfold, markdown + "\n")
    text = re.sub(r"<!--.*?-->", lambda m: "1" if "runtime" in m[0] else " ", text, flags=re.DOTALL)
    text = re.sub(r"^\(\S+\)=$", "", text, flags=re.MULTILINE)  # labels
    text = re.sub(r"\$\$.*?\$\$", " ", text, flags=re.DOTALL)
    text = re.sub(r"\$[^$]*\$", "x", text)  # a formula in the line is read as a word
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return re.sub(r"\{[\w:-]+\}`[^`]*`", "x", text)


def length_of(notebook: nbformat.NotebookNode) -> Length:
    """Counts the words and the lines of visible code before the exercises."""
    words = lines = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found = _EXERCISES.search(cell.source)
            text = cell.source[: found.start()] if found else cell.source
            words += sum(bool(re.search(r"\w", word)) for word in prose_of(text).split())
            if found:
                break
        elif cell.cell_type == "code" and not _HIDDEN & set(cell.metadata.get("tags", [])):
            lines += sum(bool(line.strip()) for line in cell.source.splitlines())
    return Length(words, lines)


def length_limit(notebook: nbformat.NotebookNode) -> Length:
    """Returns how long the chapter may be, by the number of its claims."""
    claims = len(dependencies(code_of(notebook)).claims)
    return Length(*(LENGTH_WITH_MANY_CLAIMS if claims >= MANY_CLAIMS else LENGTH))


def lengths() -> str:
    """Words a table of the chapters' lengths."""
    lines = [f"{'before the exercises':<34}{'words':>7}{'limit':>7}{'lines':>7}{'limit':>7}"]
    for path in chapters():
        notebook = nbformat.read(path, as_version=4)
        (words, code), (most_words, most_code) = length_of(notebook), length_limit(notebook)
        held = "" if path.stem in MEASURED_OUT else "  (not held yet)"
        lines.append(f"{path.stem:<34}{words:>7}{most_words:>7}{code:>7}{most_code:>7}{held}")
    return "\n".join(lines)


# --- the page of execution times ---------------------------------------------------------------------------


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


def over_time(record: Mapping[str, Any]) -> list[str]:
    """Finds what a notebook's record says of too much time, one sentence each."""
    found = []
    if (seconds := record.get("seconds", MAX_SECONDS + 1)) > MAX_SECONDS:
        found.append(f"took {seconds} s; {MAX_SECONDS} s is the limit")
    for number, seconds in enumerate(record.get("cell_seconds", []), 1):
        if seconds > MAX_CELL_SECONDS:
            found.append(f"cell [{number}] took {seconds} s; {MAX_CELL_SECONDS} s is the limit")
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
    for call in dependencies(code_of(notebook)).unknown:
        found.append(
            f"loads a checkpoint by a name that is not written out, so a change of it would not be noticed: {call}; "
            "give it as a string, or as the variable of a loop over strings"
        )
    if path.stem in MEASURED_OUT:
        length, limit = length_of(notebook), length_limit(notebook)
        if length.words > limit.words:
            found.append(
                f"has {length.words} words before its exercises; {limit.words} is the limit"
            )
        if length.lines > limit.lines:
            found.append(
                f"has {length.lines} lines of code before its exercises; {limit.lines} is the limit"
            )
    record = notebook.metadata.get("companion", {})
    if set(notebook.metadata) != {"companion", "kernelspec", "language_info"}:
        found.append(
            f"notebook metadata {sorted(notebook.metadata)} are not as the runner writes them"
        )
    if record.get("source_sha256") != source_hash(notebook):
        found.append(
            f"its code or the package changed since it was run: make notebooks ONLY={path.stem}"
        )
    times = record.get("cell_seconds", [])
    if len(times) != count:
        found.append(f"holds the times of {len(times)} cells and has {count}: run it again")
    found += over_time(record)
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


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all, and not if it holds the text already."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text.encode())


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Execute the book's notebooks and write them in their normal form."
    )
    parser.add_argument("--only", help="one chapter, such as 04-fid")
    parser.add_argument(
        "--all", action="store_true", help="every chapter, also those that are up to date"
    )
    parser.add_argument(
        "--like-avx2", action="store_true", help="without bfloat16 and AVX-512, as most laptops are"
    )
    parser.add_argument("--lengths", action="store_true", help="count words and lines, run nothing")
    arguments = parser.parse_args()
    if arguments.lengths:
        print(lengths())
        return 0
    failed = 0
    chosen = select(arguments.only, arguments.all)
    if not chosen:
        print("Every notebook is up to date.")
    for path in chosen:
        print(f"{path.stem} … ", end="", flush=True)
        try:
            notebook = execute(path, LIKE_AVX2 if arguments.like_avx2 else None)
        except CellExecutionError as error:
            print(f"failed; the file is unchanged.\n{error}", file=sys.stderr)
            failed += 1
            continue
        seconds = notebook.metadata["companion"]["seconds"]
        settled = settle(nbformat.read(path, as_version=4), notebook)
        write(path, nbformat.writes(settled) + "\n")
        print(f"{seconds} s{', the outputs stand as they were' if settled is not notebook else ''}")
        for problem in problems(path):
            print(f"  {problem}")
            failed += 1
    write(BOOK / "execution-times.md", execution_times())
    print(lengths())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
