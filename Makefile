# Two commands matter: `make demo` and `make test`. Both work from a fresh clone with Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
EXTRA ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
DEMO ?=
BIN := $(VENV)/bin
# Without a GPU an install that would bring CUDA packages stops instead: see constraints-cpu.txt.
CONSTRAINTS := $(if $(filter cpu,$(EXTRA)),-c constraints-cpu.txt)
HINT := "could not install: on a machine where pip would take a CUDA build of torch, install PyTorch's CPU build into $(VENV) first (README, Install)"

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: demo test check check-exports lint audit install format clean

demo: $(VENV)/.installed
	$(BIN)/mixwright demo $(DEMO)

test: $(VENV)/.installed-check
	# A file's tests stay in one process: they share what they set up.
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: lint audit test

# Loads every export with the library that it is for, in an environment of its own: not part of `make check`.
check-exports: $(VENV)/exports/.installed
	$(VENV)/exports/bin/python benchmarks/check_exports.py $(FORMATS)

lint: $(VENV)/.installed-check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Known vulnerabilities of what is installed; a line that says so where they cannot be looked up.
audit: $(VENV)/.installed-check
	$(BIN)/python tools/audit_dependencies.py

format: $(VENV)/.installed-check
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(VENV)/.installed

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints-cpu.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q $(CONSTRAINTS) -e '.[$(EXTRA)]' || { echo $(HINT) >&2; exit 1; }
	touch $@

$(VENV)/.installed-check: $(VENV)/.installed
	$(BIN)/python -m pip install -q $(CONSTRAINTS) -e '.[$(EXTRA),check]' || { echo $(HINT) >&2; exit 1; }
	touch $@

$(VENV)/exports/.installed: benchmarks/exports-requirements.txt $(VENV)/.installed-check
	$(BIN)/python -m venv $(VENV)/exports
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > \
	  $$($(VENV)/exports/bin/python -c 'import site; print(site.getsitepackages()[0])')/mixwright-environment.pth
	$(VENV)/exports/bin/python -m pip install -q --no-deps -r benchmarks/exports-requirements.txt
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
