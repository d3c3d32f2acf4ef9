# Generative Models, Measured. `make book` builds the book, `make check` runs the quick checks, `make test` all of them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000

.DEFAULT_GOAL := book
.PHONY: book check test lab serve notebooks pdf bench clean

# Set-up happens once, and again only when the pins or the package's metadata change.
$(VENV)/.ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python %d.%d is too old: this book needs 3.11 or newer; try make PYTHON=python3.12" % sys.version_info[:2])'
	@echo "Setting up $(VENV), once; this takes some minutes …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet --requirement requirements.txt
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

book: $(VENV)/.ready
	@$(BIN)/python book/tools/build.py

# Lint, format, layering, types and unit tests: what a change of the package needs before it is committed. Tests that
# start whole programs are left to `make test`.
check: $(VENV)/.ready
	@$(BIN)/python book/tools/checks.py --quick

test: $(VENV)/.ready
	@$(BIN)/python book/tools/checks.py

# NumPy's BLAS and PyTorch each keep a pool of threads that wait by spinning: with two of each on two cores, the
# small problems of a chapter take up to twice as long as with one of the former.
lab notebooks: export OPENBLAS_NUM_THREADS ?= 1

lab: $(VENV)/.ready
	$(BIN)/jupyter lab --notebook-dir=book

serve: book
	@echo "The book is at http://localhost:$(PORT); Ctrl-C stops."
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

notebooks: $(VENV)/.ready
	$(BIN)/python book/tools/notebooks.py $(if $(ONLY),--only $(ONLY)) $(if $(ALL),--all)

pdf: book
	$(BIN)/python book/tools/pdf.py

# Types are checked in the tests, at each call; here it would count as the package's own time.
bench: export JAXTYPING_DISABLE := 1
# QUICK=1: a twentieth of the kills and of the damaged inputs.
bench: export BENCH_QUICK := $(QUICK)

bench: $(VENV)/.ready
	$(BIN)/python -m pytest tests/bench --override-ini "norecursedirs=.*" -s

clean:
	rm -rf _build build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
