# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SLIDE ?=
BOXES ?=

.PHONY: demo test check pytest bench clean

demo: $(VENV)/installed
	$(BIN)/python demo/demo.py --out out/demo $(if $(SLIDE),--slide "$(SLIDE)") $(if $(BOXES),--boxes "$(BOXES)")

test: check pytest

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pytest: $(VENV)/installed
	$(BIN)/pytest

bench: $(VENV)/installed
	$(BIN)/wsisam bench

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) out .pytest_cache .mypy_cache .ruff_cache
