# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SLIDE ?=
BOXES ?=
PAGE := service/wsisam_service/page/index.html

.PHONY: demo pacs-demo test check pytest page bench clean

demo: $(VENV)/installed page
	$(BIN)/python demo/demo.py --out out/demo $(if $(SLIDE),--slide "$(SLIDE)") $(if $(BOXES),--boxes "$(BOXES)")

# A real PACS beside it: needs Debian's orthanc and orthanc-dicomweb, and libturbojpeg0 for the converter.
pacs-demo: $(VENV)/installed
	$(BIN)/python demo/pacs_demo.py --out out/pacs-demo

test: check pytest

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pytest: $(VENV)/installed page
	$(BIN)/pytest

# The page for people. Without npm the service does without it, and says so at its root.
page: $(PAGE)
$(PAGE): $(wildcard web/src/*) web/index.html web/vite.config.ts web/package-lock.json
	@command -v npm >/dev/null || { echo "npm is missing: the page at / is not built"; exit 0; }; \
	(cd web && npm ci --silent --ignore-scripts --no-audit --no-fund && npm run --silent check && npm run --silent build) \
	|| echo "the page at / could not be built; the API works without it"

bench: $(VENV)/installed
	$(BIN)/wsisam bench

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) out .pytest_cache .mypy_cache .ruff_cache
