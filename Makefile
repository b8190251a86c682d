# Every target sets up what it needs: a fresh clone wants only Python 3.11+ and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

# Material's notice about MkDocs 2; the tests build under ProperDocs as well.
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help setup serve build test check lint types format new bench clean

help:  ## list what can be done here
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.done  ## make the environment (.venv), nothing else

# labml-nn goes in without its dependencies: requirements.txt says why.
$(VENV)/.done: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Marginalia needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V). Try: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@echo "Setting up $(VENV): a few minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $$(sed -n 's/^# no-deps: //p' requirements.txt)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# Not strict: a page that fails is shown with its error while it is mended.
serve: setup  ## run the demos, serve the site, reload on every save
	$(BIN)/mkdocs serve --no-strict $(ARGS)

build: setup  ## run the demos, write the site into site/ (ARGS=--verbose lists dangling links of the companion)
	$(BIN)/mkdocs build --strict $(ARGS)

test: setup  ## run the tests
	$(BIN)/pytest --numprocesses 2 --dist loadfile $(ARGS)

lint: setup  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## mypy, strict, on the generator
	$(BIN)/mypy

check: lint types test build  ## everything CI runs: lint, types, tests, strict build

format: setup  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

new: setup  ## start a paper: make new PAPER=attention/foo
	@test -n "$(PAPER)" || { echo "Which paper? make new PAPER=attention/foo"; exit 2; }
	$(BIN)/marginalia new $(PAPER)

bench: setup  ## measure builds beside other tools, an hour or so (ARGS="--n 8 --rounds 1" for a trial)
	$(BIN)/python benchmarks/run.py setup
	$(BIN)/python benchmarks/run.py all $(ARGS)
	$(BIN)/python benchmarks/report.py

clean:  ## remove the built site and the stored demo runs
	rm -rf site .cache
