# make demo    from a checkpoint to a verified bundle, an engine, its speed and some text
# make test    ruff, mypy, import-linter and the whole test suite
# make clean   remove what the two made
# PYTHON=python3.12 chooses the interpreter (3.10 to 3.13).

PYTHON ?= python3
# Two test files at a time; a file stays together, because its tests share what they made.
PYTEST_ARGS ?= --numprocesses 2 --dist loadfile
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --no-input install --quiet --constraint constraints.txt
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
INPUTS := pyproject.toml constraints.txt

.PHONY: demo test clean
.DELETE_ON_ERROR:

demo: $(VENV)/demo-$(VERSION)
	$(RUN) samples/demo/demo.py

test: $(VENV)/test-$(VERSION)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(RUN) -m pytest $(PYTEST_ARGS)

$(VENV)/demo-$(VERSION): $(VENV)/python-$(VERSION) $(INPUTS)
	@echo "installing what the demo needs into $(VENV) (torch among it, a few minutes)"
	$(PIP) --editable '.[export,cpu,rtx,generate]'
	@touch $@

$(VENV)/test-$(VERSION): $(VENV)/python-$(VERSION) $(INPUTS)
	@echo "installing what the tests need into $(VENV) (torch among it, a few minutes)"
	$(PIP) --editable '.[dev]'
	@touch $@

# Another interpreter than before: the environment is made anew.
$(VENV)/python-$(VERSION):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "'$(PYTHON)' is Python '$(VERSION)'; give one of 3.10 to 3.13: make PYTHON=python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
