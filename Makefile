SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PYTEST := $(BIN)/python -m pytest

# Tests with servers wait more than they work, so they run beside each other: of mail on its way, of mailboxes, of all else.
SENDING := $(sort $(wildcard tests/integration/test_batch*.py tests/integration/test_*send*.py tests/integration/test_*crash*.py))
MAILBOX := $(wildcard $(patsubst %,tests/integration/test_%*.py,message folder search bulk thread changes kinds snippet corpus imap other reread))

.PHONY: help install run demo fmt check test test-units test-sending test-mailbox test-service unit integration bench fuzz soak cov servers image lock clean

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

demo: install ## the service with a mailbox to try it on, on this machine only; PORT=8080 for another port
	@exec $(BIN)/cbemail demo $(if $(PORT),--port $(PORT))

fmt: install ## format, and fix what can be fixed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

check: install ## style, types, imports, what invites attacks, rules of the house
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml cbemail
	$(PYTEST) -q tests/test_house.py

test: install servers ## every test, in four parts side by side; a missing server is a failure
	@$(MAKE) --jobs --keep-going --output-sync=target test-units test-sending test-mailbox test-service

test-units: ; $(PYTEST) --ignore=tests/integration

test-sending: ; $(PYTEST) $(SENDING)

test-mailbox: ; $(PYTEST) $(MAILBOX)

test-service: ; $(PYTEST) tests/integration $(addprefix --ignore=,$(SENDING) $(MAILBOX))

test-units test-sending test-mailbox test-service: export CBEMAIL_REQUIRE_SERVERS := 1

unit: install ## the tests that need no server
	$(PYTEST) -m 'not integration and not bench'

integration: install servers ## the tests against real servers
	CBEMAIL_REQUIRE_SERVERS=1 $(PYTEST) tests/integration

bench: install servers ## measurements, as JSON
	@.ci/install-packages wrk=wrk
	$(PYTEST) -q -s -m bench tests/bench

fuzz: install servers ## the properties with 200 times the examples, and 10,000 requests made from the OpenAPI document
	CBEMAIL_REQUIRE_SERVERS=1 $(PYTEST) --hypothesis-profile=fuzz tests/property tests/integration/test_contract_fuzz.py

soak: install servers ## a mail merge whose process is killed two hundred times; CBEMAIL_SEED repeats one
	CBEMAIL_REQUIRE_SERVERS=1 CBEMAIL_KILLS=200 $(PYTEST) -o faulthandler_timeout=0 tests/integration/test_batch_crash.py

cov: install ## the tests, and which branches they miss
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage report

servers: ## the servers the tests start, installed where missing
	@.ci/install-packages dovecot=dovecot-imapd postfix=postfix nginx=nginx chromium=chromium chromedriver=chromium-driver systemd-analyze=systemd unshare=util-linux ip=iproute2 iptables=iptables dnsmasq=dnsmasq-base strace=strace
	@.ci/unpack-packages /opt/cyrus usr/lib/cyrus/bin/imapd cyrus-imapd

image: ## the image of deploy/, built and run without a container engine; needs root
	@deploy/build-check

lock: ## requirements.lock and deploy's anew; LOCK=--upgrade for newer versions
	tools=$$(mktemp -d); trap 'rm -rf "$$tools"' EXIT; \
	$(PYTHON) -m venv "$$tools"; "$$tools/bin/pip" install --quiet pip-tools; \
	CUSTOM_COMPILE_COMMAND='make lock' "$$tools/bin/pip-compile" --quiet $(LOCK) \
		--all-extras --build-deps-for editable --generate-hashes --strip-extras --allow-unsafe \
		--no-emit-index-url --no-emit-find-links --output-file requirements.lock pyproject.toml; \
	CUSTOM_COMPILE_COMMAND='make lock' "$$tools/bin/pip-compile" --quiet --constraint requirements.lock \
		--build-deps-for wheel --generate-hashes --strip-extras --allow-unsafe --no-annotate \
		--no-emit-index-url --no-emit-find-links --output-file deploy/requirements.lock pyproject.toml

clean: ## all that was made here, but for .env and the data
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage build dist *.egg-info
	find cbemail tests -name __pycache__ -prune -exec rm -rf {} +
