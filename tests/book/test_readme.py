"""Every command and every program in the README works as it stands there."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import build
import nbformat
import pytest
from chromium import find_chromium
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent

# All of it uses one copy, so it stays in one process.
pytestmark = pytest.mark.xdist_group("readme")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


COMMANDS = [
    line.removeprefix("$ ")
    for block in blocks("console")
    for line in block.splitlines()
    if line.startswith("$ ")
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the repository with the same environment, so that nothing here is changed.

    The built book is copied as well, so that `make book`, `make serve` and `make pdf` build it only if it is not there.
    """
    target = tmp_path_factory.mktemp("readme") / "book"
    left_out = shutil.ignore_patterns(
        "_build", ".venv", ".git", ".hypothesis", "local", "*_cache", "__pycache__"
    )
    shutil.copytree(ROOT, target, ignore=left_out)
    if build.is_built(ROOT):
        shutil.copytree(build.OUTPUT, target / "_build" / "html")
    (target / ".venv").symlink_to(Path(sys.prefix))
    return target


# `make test` runs this test; the commands here must not know that they run below another make.
ENVIRONMENT = {
    key: value
    for key, value in os.environ.items()
    if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
}


def make(folder: Path, *words: str, timeout: float = 280) -> subprocess.CompletedProcess:
    # --old-file: the environment is shared, so it must not be set up again whatever the copies' dates.
    return subprocess.run(
        ["make", "--old-file=.venv/.ready", *words],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(address: str, seconds: float = 60) -> str:
    """Reads a page as soon as its server is up."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5) as reply:
                return reply.read().decode("utf-8", "replace")
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def start(folder: Path, *words: str, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        ["make", "--old-file=.venv/.ready", *words],
        cwd=folder,
        env={**ENVIRONMENT, **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def stop(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=20)


def run_book(copy):
    result = make(copy, "book")
    assert result.returncode == 0, result.stderr
    page = re.search(r"Open file://(\S+)", result.stdout).group(1)
    assert "Generative Models, Measured" in Path(page).read_text(encoding="utf-8")


def run_serve(copy):
    port = free_port()
    process = start(copy, "serve", f"PORT={port}")
    try:
        assert "Generative Models, Measured" in answers(
            f"http://127.0.0.1:{port}/book/index.html", seconds=200
        )
    finally:
        stop(process)


def bookmarks(outline):
    """The titles of a PDF's bookmarks, chapters inside their parts included."""
    for entry in outline:
        if isinstance(entry, list):
            yield from bookmarks(entry)
        else:
            yield entry.title


def run_pdf(copy):
    result = make(copy, "pdf")
    assert result.returncode == 0, result.stderr
    from pypdf import PdfReader

    (path,) = (copy / "_build").rglob("*.pdf")
    reader = PdfReader(path)
    assert len(reader.pages) > 20
    assert any("Inception Score" in title for title in bookmarks(reader.outline))


def run_lab(copy):
    port = free_port()
    config = copy / "jupyter-config"
    config.mkdir()
    (config / "jupyter_server_config.py").write_text(
        f"c = get_config()\nc.ServerApp.allow_root = True\nc.ServerApp.port = {port}\n"
        "c.ServerApp.open_browser = False\nc.IdentityProvider.token = ''\n"
    )
    process = start(copy, "lab", JUPYTER_CONFIG_DIR=str(config))
    try:
        assert "05-psnr.ipynb" in answers(f"http://127.0.0.1:{port}/api/contents")
    finally:
        stop(process)


def run_install(copy):
    target = copy / "installed"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
    ]
    subprocess.run([*command, "--target", target, "."], cwd=copy, check=True, timeout=200)
    program = "import companion; print(companion.__file__); companion.load_checkpoint('digit-cnn')"
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=target,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(result.stdout.strip()).is_relative_to(target)
    script = target / "bin" / "companion"
    environment = {**os.environ, "PYTHONPATH": str(target)}
    listing = subprocess.run([script, "list"], env=environment, capture_output=True, text=True)
    assert "digit-cnn" in listing.stdout, listing.stderr


def companion(copy: Path, command: str, code: int = 0, **env: str) -> str:
    """Runs one of the README's commands as it stands, in the copy's folder; returns what it prints."""
    words = shlex.split(command)
    # The scripts of the environment, by the modules that they call, as it may not be activated.
    module = {"companion": "companion", "torchrun": "torch.distributed.run"}[words[0]]
    result = subprocess.run(
        [sys.executable, "-m", module, *words[1:]],
        cwd=copy,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == code, result.stderr
    return result.stdout + result.stderr


def run_list(copy):
    assert "digit-cnn: DigitCNN, 102,826 parameters" in companion(copy, "companion list")


TRAIN = (
    "companion train vae --data digits --architecture mlp --iwae 0 --steps 300 --output runs/mine"
)


def trained(copy) -> Path:
    """The checkpoint that the README's training makes, made once."""
    path = copy / "runs" / "mine" / "vae.safetensors"
    if not path.exists():
        said = companion(copy, TRAIN)
        assert "FID" in said
        assert "runs/mine/vae.safetensors" in said
    return path


def run_train(copy):
    card = json.loads(trained(copy).with_suffix(".json").read_text(encoding="utf-8"))
    assert card["steps"] == 300


def run_resume(copy):
    before = trained(copy).read_bytes()
    companion(copy, f"{TRAIN} --resume")
    assert trained(copy).read_bytes() == before


def run_evaluate(copy):
    trained(copy)
    companion(copy, "companion evaluate runs/mine --json numbers.json")
    numbers = json.loads((copy / "numbers.json").read_text(encoding="utf-8"))
    (distance,) = (m["value"] for m in numbers["measurements"] if m["name"] == "FID")
    assert distance > 0


def run_sample(copy):
    trained(copy)
    companion(copy, "companion sample runs/mine --n 64 --out grid.png")
    with Image.open(copy / "grid.png") as picture:
        assert picture.size == (8 * 30 - 2, 8 * 30 - 2)


def run_evaluate_shipped(copy):
    assert "digits/test: accuracy" in companion(copy, "companion evaluate digit-cnn")


def run_fetch(copy):
    # Tests do without the internet: what must be right is the advice for those who have none either.
    proxies = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    data = str(copy / "data")
    said = companion(copy, "companion fetch mnist", code=1, COMPANION_DATA=data, **proxies)
    assert f"{data}/mnist/train-images-idx3-ubyte.gz" in said


COMPARE = "companion compare digits/test gan --n 500 --json comparison.json"
COMPARE_BY = (
    "companion compare digits/train digits/test --n 300 "
    "--features companion.metrics.features:digit_features"
)


def run_compare(copy):
    companion(copy, COMPARE)
    numbers = json.loads((copy / "comparison.json").read_text(encoding="utf-8"))
    found = {m["name"]: m for m in numbers["measurements"] if m["of"] != "real"}
    assert {"FID", "KID", "precision", "recall", "Inception Score"} <= found.keys()
    assert all(found[name]["spread"] > 0 for name in ("FID", "KID", "precision", "recall"))
    assert found["FID"]["value"] < 20


def run_compare_by(copy):
    assert "FID" in companion(copy, COMPARE_BY)


def two_processes(command: str):
    def run_it(copy):
        folder = copy / command.split()[-1]
        companion(copy, command)
        card = json.loads((folder / "digit-cnn.json").read_text(encoding="utf-8"))
        assert card["steps"] == 20
        assert "2 processes" in card["device"]

    return run_it


DEVICES = "companion train digit-cnn --data digits --steps 20 --devices 2 --output runs/two"
TORCHRUN = (
    "torchrun --nproc-per-node 2 --max-restarts 3 -m companion train digit-cnn --data digits --steps 20 "
    "--output runs/three"
)


def run_one_notebook(copy):
    path = copy / "book" / "05-psnr.ipynb"
    notebook = nbformat.read(path, as_version=4)
    # That all of it runs is nbval's to say. An output that no reader has seen must go.
    del notebook.cells[8:]
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code" and cell.outputs)
    cell.outputs.append(nbformat.v4.new_output("stream", text="left over"))
    nbformat.write(notebook, path)
    result = make(copy, "notebooks", "ONLY=05-psnr")
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"05-psnr … \d+ s", result.stdout)
    assert "left over" not in path.read_text(encoding="utf-8")


def run_notebooks(copy):
    result = make(copy, "notebooks")
    assert result.returncode == 0, result.stderr
    assert "up to date" in result.stdout


def run_clean(copy):
    (copy / "_build" / "html").mkdir(parents=True, exist_ok=True)
    assert make(copy, "clean").returncode == 0
    assert not (copy / "_build").exists()
    assert (copy / ".venv").is_symlink()


def run_test(copy):
    # This test is itself a part of `make test`; what remains to show is that the target runs the checks.
    assert "book/tools/checks.py\n" in make(copy, "--dry-run", "test").stdout


def run_check(copy):
    assert "book/tools/checks.py --quick\n" in make(copy, "--dry-run", "check").stdout


def run_bench(copy):
    # What earlier tests leave behind must not keep it from starting.
    (copy / ".hypothesis").mkdir(exist_ok=True)
    # Fewer rounds, no fewer checks.
    result = make(copy, "bench", "QUICK=1", timeout=800)
    assert result.returncode == 0, result.stdout
    assert re.search(r"\d+ passed", result.stdout)


RUNS = {
    "make book": run_book,
    "make test": run_test,
    "make serve": run_serve,
    "make pdf": run_pdf,
    "make lab": run_lab,
    "pip install .": run_install,
    "companion list": run_list,
    TRAIN: run_train,
    "companion evaluate runs/mine --json numbers.json": run_evaluate,
    "companion sample runs/mine --n 64 --out grid.png": run_sample,
    "companion evaluate digit-cnn": run_evaluate_shipped,
    "companion fetch mnist": run_fetch,
    f"{TRAIN} --resume": run_resume,
    COMPARE: run_compare,
    COMPARE_BY: run_compare_by,
    DEVICES: two_processes(DEVICES),
    TORCHRUN: two_processes(TORCHRUN),
    "make check": run_check,
    "make notebooks ONLY=05-psnr": run_one_notebook,
    "make notebooks": run_notebooks,
    "make bench": run_bench,
    "make clean": run_clean,
}


def test_every_command_has_its_run():
    assert sorted(COMMANDS) == sorted(RUNS)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", RUNS)
def test_command(command, copy):
    if command == "make pdf" and not find_chromium():
        if os.environ.get("CI"):
            pytest.fail("continuous integration has no Chromium")
        pytest.skip("make pdf prints with Chromium, which is not installed")
    RUNS[command](copy)


def test_environment_is_set_up_once(tmp_path):
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
        os.utime(tmp_path / name, (1000, 1000))

    def plan() -> str:
        command = ["make", "--dry-run", "book"]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    assert "pip install" in plan()
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".ready").touch()
    assert "pip install" not in plan()
    assert "build.py" in plan()
    new = time.time() + 10
    os.utime(tmp_path / "requirements.txt", (new, new))
    assert "pip install" in plan()


# What each program of the README prints: a pattern for each line.
PRINTED = [
    [
        r"FID \d{2,3}\.\d",
        # The example of the README: real digits are sure and diverse, whatever their order in the file.
        r"    real: Inception Score 9\.[345]\d ± 0\.\d\d",
        r" blurred: Inception Score [1-8]\.\d\d ± \d\.\d\d",
    ],
    [r"codes \(8, 32\), error 0\.0\d\d", r"images \(4, 1, 28, 28\) in \[-1\.0, [01]\.\d\]"],
    [r"\(64, 1, 28, 28\) torch\.int64 400"],
    [r"[\d,]+ parameters, FID \d+\.\d"],
]


@pytest.mark.parametrize(("program", "lines"), list(zip(blocks("python"), PRINTED, strict=True)))
def test_program(program, lines, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(lines)
    for line, pattern in zip(printed, lines, strict=True):
        assert re.fullmatch(pattern, line), line


def test_exit_codes_are_those_of_the_command():
    from companion.cli import EXIT_CODES

    codes = dict(re.findall(r"^\| (\d+) \| (.+) \|$", README, re.M))
    assert codes == dict(re.findall(r"^  (\d+) +(.+)$", EXIT_CODES, re.M))


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_layout_names_what_exists():
    for place in re.findall(r"^\| `([^`]+)` \|", README, re.M):
        assert (ROOT / place).exists(), place
