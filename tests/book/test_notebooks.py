"""The committed notebooks are in order, and the runner that writes them does what it says."""

from pathlib import Path

import nbformat
import notebooks
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from companion.files import write_atomically

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


def test_better_words_do_not_make_outputs_stale():
    before = '"""Old."""\nimport os\n\n\ndef f(x):\n    """Doc."""\n    return x  # why\n'
    after = (
        '"""New words."""\nimport os\n\ndef f(x):\n    """More doc.\n\n    Even more.\n    """\n'
        "    # because\n    return x\n"
    )
    assert notebooks.meaning_of(before) == notebooks.meaning_of(after)


def test_other_code_makes_outputs_stale():
    assert notebooks.meaning_of("def f(x):\n    return x\n") != notebooks.meaning_of(
        "def f(x):\n    return -x\n"
    )


def test_strings_that_look_like_comments_count():
    assert notebooks.meaning_of('a = "#1"\n') != notebooks.meaning_of('a = "#2"\n')


def test_imports_are_followed():
    files, checkpoints = notebooks.dependencies(
        [
            "%matplotlib inline\nfrom companion.display import claim",
            'm = load_checkpoint("digit-cnn")',
        ]
    )
    names = {path.relative_to(ROOT).as_posix() for path in files}
    assert {
        "companion/__init__.py",
        "companion/display/claims.py",
        "companion/display/pictures.py",
        "companion/data/images.py",  # by way of display
        "companion/errors.py",
    } <= names
    assert checkpoints == {"digit-cnn"}


def notebook_with(*cells) -> nbformat.NotebookNode:
    return notebooks.normalise(new_notebook(cells=list(cells)), seconds=3.2)


def write(tmp_path, notebook) -> Path:
    path = tmp_path / "09-trial.ipynb"
    write_atomically(path, (nbformat.writes(notebook) + "\n").encode())
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
    assert nbformat.writes(notebooks.normalise(once, seconds=3.2)) == text
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
    monkeypatch.setattr(notebooks, "BOOK", tmp_path)
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
    slow = notebooks.normalise(new_notebook(cells=[run_cell()]), seconds=121)
    assert any("121 s" in problem for problem in notebooks.problems(write(tmp_path, slow)))
    big = notebook_with(run_cell(outputs=[stream("stdout", "a" * 1_500_001)]))
    assert any("bytes" in problem for problem in notebooks.problems(write(tmp_path, big)))


def test_execution_runs_from_the_top(tmp_path):
    path = tmp_path / "09-trial.ipynb"
    nbformat.write(
        new_notebook(cells=[run_cell("x = 20", count=7), run_cell("print(x + 1)", count=3)]), path
    )
    notebook = notebooks.execute(path)
    assert [cell.execution_count for cell in notebook.cells] == [1, 2]
    assert notebook.cells[1].outputs[0].text == "21\n"
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
