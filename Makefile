SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PYTEST := $(BIN)/python -m pytest

.PHONY: help install run fmt check test unit integration bench fuzz soak cov servers lock clean

help: ## what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED) ## .venv, with exactly the packages of requirements.lock

$(INSTALLED): pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv || { rm -rf .venv; .ci/install-packages venv=python3-venv; $(PYTHON) -m venv .venv; }
	$(BIN)/pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

run: install ## the service; a first run makes its SECRET_KEY, into .env
	@$(BIN)/cbemail keys init
	@exec $(BIN)/cbemail serve

fmt: install ## format, and fix what can be fixed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

check: install ## style, types, imports, rules of the house
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) -q tests/test_house.py

test: install servers ## every test; a missing server is a failure
	CBEMAIL_REQUIRE_SERVERS=1 $(PYTEST)

unit: install ## the tests that need no server
	$(PYTEST) -m 'not integration and not bench'

integration: install servers ## the tests against real servers
	CBEMAIL_REQUIRE_SERVERS=1 $(PYTEST) tests/integration

bench: install servers ## measurements, as JSON
	@.ci/install-packages wrk=wrk
	$(PYTEST) -q -s -m bench tests/bench

fuzz: install ## the properties, with a hundred times the examples
	$(PYTEST) --hypothesis-profile=fuzz tests/property

soak: install servers ## a mail merge whose process is killed two hundred times; CBEMAIL_SEED repeats one
	CBEMAIL_REQUIRE_SERVERS=1 CBEMAIL_KILLS=200 $(PYTEST) tests/integration/test_batch_crash.py

cov: install ## the tests, and which branches they miss
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage report

servers: ## the servers the tests start, installed where missing
	@.ci/install-packages dovecot=dovecot-imapd postfix=postfix nginx=nginx chromium=chromium chromedriver=chromium-driver

lock: ## requirements.lock anew; LOCK=--upgrade for newer versions
	tools=$$(mktemp -d); trap 'rm -rf "$$tools"' EXIT; \
	$(PYTHON) -m venv "$$tools"; "$$tools/bin/pip" install --quiet pip-tools; \
	CUSTOM_COMPILE_COMMAND='make lock' "$$tools/bin/pip-compile" --quiet $(LOCK) \
		--all-extras --build-deps-for editable --generate-hashes --strip-extras --allow-unsafe \
		--no-emit-index-url --no-emit-find-links --output-file requirements.lock pyproject.toml

clean: ## all that was made here, but for .env and the data
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage build dist *.egg-info
	find cbemail tests -name __pycache__ -prune -exec rm -rf {} +
