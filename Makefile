# Two commands do everything on a fresh machine: `make run` and `make test`. Needs Python 3.11 to 3.13.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/ready

.PHONY: setup run test test-all lint clean

setup: $(READY)

# torch first and by itself, so that nothing else chooses a version of it.
$(READY): pyproject.toml requirements.txt constraints.txt
	@$(or $(PYTHON),false) -c '$(FITS)' || \
		{ echo "error: Python 3.11 to 3.13 is needed: make PYTHON=/path/to/python3.12 names one" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: setup
	@$(BIN)/tbt notebook run training.ipynb

test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

test-all: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache *.egg-info
