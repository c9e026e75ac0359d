# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SLIDE ?=
BOXES ?=
PAGE := service/wsisam_service/page/index.html

.PHONY: demo pacs-demo test check pytest page bench lock sbom licenses audit clean

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

# What the images hold: pinned with hashes, listed, and looked up in the list of known holes.
SUPPLY := out/supply
COMPILE := $(SUPPLY)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate --no-emit-index-url --constraint constraints.txt --output-file
lock: $(SUPPLY)/installed
	python3 docker/requirements.py gateway,pacs | $(COMPILE) docker/gateway.lock -
	python3 docker/requirements.py worker | $(COMPILE) docker/worker.lock -

sbom: $(SUPPLY)/installed
	for image in gateway worker; do \
	    $(SUPPLY)/bin/cyclonedx-py requirements docker/$$image.lock --output-file out/$$image.sbom.json || exit 1; done

licenses: $(VENV)/installed
	$(BIN)/python docker/licenses.py

# Asks PyPI, or with AUDIT=-s\ osv the OSV database: needs the network.
audit: $(SUPPLY)/installed
	for image in gateway worker; do \
	    $(SUPPLY)/bin/pip-audit --disable-pip --require-hashes --requirement docker/$$image.lock $(AUDIT) || exit 1; done

$(SUPPLY)/installed:
	$(PYTHON) -m venv $(SUPPLY)
	$(SUPPLY)/bin/pip install --quiet uv==0.13.9 cyclonedx-bom==7.5.0 pip-audit==2.10.1
	touch $@

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) out .pytest_cache .mypy_cache .ruff_cache
