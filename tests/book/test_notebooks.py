"""The committed notebooks are in order, and the runner that writes them does what it says."""

import base64
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import dependencies
import nbformat
import notebooks
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

CHAPTERS = notebooks.chapters()


# --- the book's notebooks ---------------------------------------------------------------------------


def test_there_are_chapters():
    assert len(CHAPTERS) >= 5


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_notebook_is_in_order(path):
    assert notebooks.problems(path) == []


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_has_its_parts(path):
    notebook = nbformat.read(path, as_version=4)
    html = "".join(
        output.get("data", {}).get("text/html", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    code = "\n".join(notebooks.code_of(notebook))
    assert 'class="cmp-figure cmp-slider' in html, "no interactive figure"
    assert "import companion" in code or "from companion" in code
    assert notebooks.RUNTIME.search(text), "the run time is not stated"
    assert len(text.split()) >= 3000, "prose carries a chapter"
    exercises = text.count("```{exercise}")
    assert 5 <= exercises <= 8
    assert text.count("```{solution-start}") == exercises
    assert code.count("solution=True") == exercises


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_cells_are_short(path):
    for source in notebooks.code_of(nbformat.read(path, as_version=4)):
        assert len(source.splitlines()) <= 60, source[:80]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_notebook_leaves_the_threads_alone(path):
    # How many threads pay depends on the machine and on what else runs.
    code = "\n".join(notebooks.code_of(nbformat.read(path, as_version=4)))
    assert "set_num_threads" not in code
    assert "OMP_NUM_THREADS" not in code


def test_execution_times_are_the_notebooks_own():
    page = (ROOT / "book" / "execution-times.md").read_text(encoding="utf-8")
    assert page == notebooks.execution_times()


# --- the runner -------------------------------------------------------------------------------------


def notebook_with(*cells) -> nbformat.NotebookNode:
    code = sum(cell.cell_type == "code" for cell in cells)
    return notebooks.normalise(new_notebook(cells=list(cells)), 3.2, [0.51] * code)


def write(tmp_path, notebook) -> Path:
    path = tmp_path / "09-trial.ipynb"
    notebooks.write(path, nbformat.writes(notebook) + "\n")
    return path


def run_cell(source="1 + 1", count=1, outputs=(), **metadata):
    return new_code_cell(source, execution_count=count, outputs=list(outputs), metadata=metadata)


def test_normal_form_has_no_problems(tmp_path):
    marked = new_markdown_cell("Run time <!--runtime-->x<!--/runtime-->.")
    notebook = notebook_with(marked, run_cell())
    assert notebooks.problems(write(tmp_path, notebook)) == []
    assert notebook.cells[0].source == "Run time <!--runtime-->3 seconds<!--/runtime-->."


def test_normal_form_is_stable():
    once = notebook_with(new_markdown_cell("a"), new_markdown_cell("a"), run_cell())
    text = nbformat.writes(once)
    assert nbformat.writes(notebooks.normalise(once, 3.2, [0.51])) == text
    assert len({cell.id for cell in once.cells}) == 3


def test_widget_views_are_dropped():
    output = new_output(
        "display_data", {"text/html": "a", notebooks.WIDGET_VIEW: {"model_id": "1"}}
    )
    assert set(notebook_with(run_cell(outputs=[output])).cells[0].outputs[0].data) == {"text/html"}


def html(text):
    return new_output("display_data", {"text/html": text})


def stream(name, text):
    return new_output("stream", name=name, text=text)


@pytest.mark.parametrize(
    ("cell", "complaint"),
    [
        (run_cell(count=2), "count 2, 1 in a run"),
        (run_cell(""), "is empty"),
        (
            run_cell(outputs=[new_output("error", ename="KeyError", evalue="", traceback=[])]),
            "error KeyError",
        ),
        (run_cell(outputs=[stream("stderr", "UserWarning: x")]), "stderr"),
        (run_cell(outputs=[stream("stdout", "see /home/ann/data")]), "local path"),
        (run_cell(outputs=[stream("stdout", "<object at 0x7f00aa112233>")]), "address"),
        (run_cell(outputs=[html('<img src="data:image/png;base64,AAAA">')]), "without alt text"),
        (
            run_cell(outputs=[html('<img alt=" " src="data:image/png;base64,AAAA">')]),
            "without alt text",
        ),
        (run_cell(outputs=[new_output("display_data", {"image/png": "AAAA"})]), "bare image"),
        (run_cell(tags=["nbval-ignore-output"]), "nbval_reason"),
    ],
)
def test_faults_are_found(tmp_path, cell, complaint):
    found = notebooks.problems(write(tmp_path, notebook_with(cell)))
    assert any(complaint in problem for problem in found), found


@pytest.mark.parametrize(
    ("table", "nameless"),
    [
        ("| | b |\n|---|--:|\n| 1 | 2 |", 1),
        ("a |  | c\n--- | --- | ---", 1),
        ("| a | b |\n|---|---|\n| | 2 |", 0),
        ("| $|x|$ | `||` |\n|:--|:-:|", 0),
        ("a sentence\n---\n", 0),
    ],
)
def test_columns_of_markdown_tables_have_names(tmp_path, table, nameless):
    notebook = notebook_with(new_markdown_cell(f"text\n\n{table}\n"), run_cell())
    found = notebooks.problems(write(tmp_path, notebook))
    assert len(found) == nameless
    assert all("column without a name" in problem for problem in found)


def test_recorded_measurements_make_outputs_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(dependencies, "BOOK", tmp_path)
    record = tmp_path / "measurements" / "gan-seeds.json"
    record.parent.mkdir()
    record.write_text("{}")
    notebook = notebook_with(run_cell('found = Path("measurements/gan-seeds.json").read_text()'))
    path = write(tmp_path, notebook)
    assert notebooks.problems(path) == []
    record.write_text('{"seeds": {}}')
    assert any("changed since it was run" in problem for problem in notebooks.problems(path))


def test_images_are_not_mistaken_for_paths(tmp_path):
    image = html('<img alt="a" src="data:image/png;base64,/tmp/AAAA/home/aa">')
    assert notebooks.problems(write(tmp_path, notebook_with(run_cell(outputs=[image])))) == []


def test_changed_code_is_noticed(tmp_path):
    notebook = notebook_with(run_cell("a = 1"))
    notebook.cells[0].source = "a = 2"
    (problem,) = notebooks.problems(write(tmp_path, notebook))
    assert "changed since it was run" in problem


def test_too_slow_and_too_big(tmp_path):
    slow = notebooks.normalise(new_notebook(cells=[run_cell(), run_cell()]), 121, [45.0, 45.1])
    found = notebooks.problems(write(tmp_path, slow))
    assert [problem for problem in found if "limit" in problem] == [
        "took 121 s; 120 s is the limit",
        "cell [2] took 45.1 s; 45 s is the limit",
    ]
    big = notebook_with(run_cell(outputs=[stream("stdout", "a" * 1_500_001)]))
    assert any("bytes" in problem for problem in notebooks.problems(write(tmp_path, big)))


def test_every_cell_has_its_time(tmp_path):
    short = notebooks.normalise(new_notebook(cells=[run_cell(), run_cell()]), 1, [0.1])
    assert any(
        "times of 1 cells and has 2" in p for p in notebooks.problems(write(tmp_path, short))
    )


@pytest.mark.parametrize(
    ("recorded", "limit"), [(None, 240), (0.0, 240), (39.9, 240), (41.0, 246), (120.0, 720)]
)
def test_a_busy_machine_has_six_times_as_long(recorded, limit):
    assert notebooks.time_limit(recorded) == limit


def test_nbval_gives_each_cell_its_own_time(tmp_path):
    """Run as the checks run it, with the limits shortened: the second cell has time, the third hangs."""
    sleep = "import time; time.sleep({})"
    cells = [run_cell(sleep.format(seconds), count=i) for i, seconds in enumerate((0, 3, 30), 1)]
    notebook = notebooks.normalise(new_notebook(cells=cells), 8, [0.0, 2.0, 0.1])
    nbformat.write(notebook, tmp_path / "09-trial.ipynb")
    conftest = (ROOT / "book" / "conftest.py").read_text(encoding="utf-8")
    (tmp_path / "conftest.py").write_text(
        f"import notebooks\nnotebooks.LEAST_PATIENCE = 1\n{conftest}", encoding="utf-8"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval"]
    command += ["--nbval-current-env", f"--rootdir={tmp_path}", f"--confcutdir={tmp_path}"]
    result = subprocess.run(
        [*command, "--override-ini=addopts=", "--override-ini=filterwarnings=", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'book' / 'tools'}:{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    outcomes = dict(re.findall(r"^(FAILED|ERROR) .*::(Cell \d)", result.stdout, re.M))
    assert "1 failed, 2 passed" in result.stdout, result.stdout + result.stderr
    assert outcomes == {"FAILED": "Cell 2"}
    assert "Timeout of 1 seconds exceeded" in result.stdout


@pytest.mark.parametrize(
    ("source", "refused"),
    [
        ("net = load_checkpoint(input())", True),
        ("for name in ('gan', 'vae'):\n    load_checkpoint(name)", False),
    ],
)
def test_checkpoints_are_named_in_the_code(tmp_path, source, refused):
    found = notebooks.problems(write(tmp_path, notebook_with(run_cell(source))))
    assert any("not written out" in problem for problem in found) is refused


def test_execution_runs_from_the_top(tmp_path):
    path = tmp_path / "09-trial.ipynb"
    nbformat.write(
        new_notebook(cells=[run_cell("x = 20", count=7), run_cell("print(x + 1)", count=3)]), path
    )
    notebook = notebooks.execute(path)
    assert [cell.execution_count for cell in notebook.cells] == [1, 2]
    assert notebook.cells[1].outputs[0].text == "21\n"
    assert len(notebook.metadata.companion.cell_seconds) == 2
    assert notebooks.problems(write(tmp_path, notebook)) == []


def test_failed_execution_leaves_the_file(tmp_path, monkeypatch, capsys):
    path = tmp_path / "09-trial.ipynb"
    nbformat.write(new_notebook(cells=[run_cell("1 / 0")]), path)
    before = path.read_bytes()
    monkeypatch.setattr(notebooks, "BOOK", tmp_path)
    monkeypatch.setattr("sys.argv", ["notebooks.py", "--only", "09-trial"])
    assert notebooks.main() == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_unknown_chapter_is_named(monkeypatch):
    with pytest.raises(SystemExit, match="no chapter is called '99-nothing'"):
        notebooks.select("99-nothing", everything=False)


# --- outputs that stand -----------------------------------------------------------------------------


def picture(colour: int = 200, size: int = 8) -> str:
    file = io.BytesIO()
    Image.new("L", (size, size), colour).save(file, "PNG")
    return f'<img alt="a" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def number(value: float) -> str:
    return f'<data class="measured" value="{value!r}">{value:.2f}</data>'


def trial(
    output: str, source: str = "show()", words: str = "a", **metadata
) -> nbformat.NotebookNode:
    marked = new_markdown_cell(f"{words} <!--runtime-->x<!--/runtime-->")
    return notebook_with(marked, run_cell(source, outputs=[html(output)], **metadata))


TIMING = {"tags": ["nbval-ignore-output"], "nbval_reason": "times"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (trial("a"), trial("a")),
        (trial(number(0.12345)), trial(number(0.12346))),
        (trial(picture(200)), trial(picture(203))),
        (trial("0.3 s", **TIMING), trial("0.4 s", **TIMING)),
    ],
    ids=["equal", "last digits", "shades", "ignored"],
)
def test_a_notebook_that_looks_the_same_is_not_rewritten(old, new):
    before = nbformat.writes(old)
    run_again = notebooks.normalise(new, 77.0, [66.0])
    assert nbformat.writes(notebooks.settle(old, run_again)) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (trial("a"), trial("b")),
        (trial(number(0.12)), trial(number(0.13))),
        (trial(picture(200)), trial(picture(100))),
        (trial(picture(size=8)), trial(picture(size=9))),
        (trial(picture()), trial(picture() + picture())),
        (trial("a"), trial("a", source="show(1)")),
    ],
    ids=["words", "shown digits", "colours", "size", "more", "code"],
)
def test_a_notebook_that_looks_different_is_rewritten(old, new):
    run_again = notebooks.normalise(new, 77.0, [66.0])
    assert notebooks.settle(old, run_again) is run_again


def test_only_the_hash_changes_where_the_outputs_stand():
    old, new = trial(number(0.12345)), trial(number(0.12346))
    old.metadata.companion.source_sha256 = "of older code"
    settled = notebooks.settle(old, notebooks.normalise(new, 77.0, [66.0]))
    assert settled.metadata.companion.source_sha256 == new.metadata.companion.source_sha256
    settled.metadata.companion.source_sha256 = "of older code"
    assert nbformat.writes(settled) == nbformat.writes(old)


def test_an_older_record_without_times_gets_them():
    old, new = trial("a"), trial("a")
    del old.metadata["companion"]["cell_seconds"]
    assert notebooks.settle(old, new) is new


@pytest.mark.parametrize(("name", "value"), [("seconds", 121), ("cell_seconds", [45.1])])
def test_times_that_break_the_limits_do_not_stand(name, value):
    old, new = trial("a"), trial("a")
    old.metadata["companion"][name] = value
    assert notebooks.settle(old, new) is new


def test_times_of_other_cells_do_not_stand():
    """A cell that was cut in two changes no output."""
    old, new = trial("a"), trial("a")
    old.metadata["companion"]["cell_seconds"] = [1.0, 2.0]
    assert notebooks.settle(old, new) is new


# --- the length of a chapter ------------------------------------------------------------------------

LONG = """# A title of five words

Seven words, $x^2 + y^2$ among them, stand here.

$$ not = counted $$

```{dropdown} Folded
Not counted at all.
```

:::{note}
:class: dropdown
Not counted either.
:::

```{note}
Three words more.
```

<!-- no reader sees this -->
"""


def test_words_and_visible_lines_before_the_exercises_are_counted():
    notebook = new_notebook(
        cells=[
            new_markdown_cell(LONG),
            run_cell("a = 1\n\nb = 2"),
            run_cell("c = 3", tags=["hide-input"]),
            new_markdown_cell("Four words to count.\n\n## Exercises\n\nNo more."),
            run_cell("d = 4"),
            new_markdown_cell("Not counted."),
        ]
    )
    assert notebooks.length_of(notebook) == (5 + 7 + 3 + 4, 2)


@pytest.mark.parametrize(("claims", "limit"), [(9, (5000, 500)), (10, (6500, 700))])
def test_many_claims_may_take_more_room(claims, limit):
    cells = [run_cell(f'claim("GAN-{i}", x)') for i in range(claims)]
    assert notebooks.length_limit(new_notebook(cells=cells)) == limit


@pytest.mark.parametrize("held", [True, False])
def test_chapters_of_the_second_edition_are_held_to_their_length(tmp_path, monkeypatch, held):
    monkeypatch.setattr(notebooks, "MEASURED_OUT", frozenset({"09-trial"} if held else ()))
    notebook = notebook_with(new_markdown_cell("word " * 5001), run_cell("a = 1\n" * 501))
    found = [
        p for p in notebooks.problems(write(tmp_path, notebook)) if "before its exercises" in p
    ]
    assert len(found) == (2 if held else 0)


def test_lengths_are_printed_for_every_chapter():
    assert [line.split()[0] for line in notebooks.lengths().splitlines()[1:]] == [
        path.stem for path in CHAPTERS
    ]
