PYTHON ?= python3
ARGS ?=
VENV := .venv

# The stamp carries the lock's checksum: a checkout may change the lock's time stamp without changing
# the lock, or the lock without making it younger than the environment.
STAMP := $(VENV)/.installed-$(shell cksum < requirements-dev.txt | cut -d ' ' -f 1)
COMPILE := $(VENV)/bin/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --no-emit-index-url --python-version 3.11
SOURCES := $(wildcard gateway tests tools examples benchmarks clients/agent/livekit_sse_gateway_agent)
INBOX := gateway/rooms/native/_inbox.so
INBOX_FLAGS := -std=c11 -D_POSIX_C_SOURCE=200809L -O2 -Wall -fPIC -pthread
TEST_PROGRAMS := caddy cc chromium curl haproxy nginx npm openssl redis-server

.DEFAULT_GOAL := help
.PHONY: help install run demo test test-deps check format bench bench-rooms bench-send bench-streamed bench-joins bench-cold bench-delivery bench-agents lock clean

help:       ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' Makefile | while read -r name text; do printf '  make %-14s %s\n' "$$name" "$$text"; done

install: $(STAMP) $(INBOX)  ## make .venv with everything in requirements-dev.txt (PYTHON=python3.12 picks the interpreter)

run: install  ## start a LiveKit server (unless LIVEKIT_URL is set) and the gateway, and show what to try
	@$(VENV)/bin/python -m tools.run $(ARGS)

demo: install  ## the same, with an agent to chat with, whose doings are shown live
	@$(VENV)/bin/python -m tools.demo $(ARGS)

test: install  ## run all tests (ARGS="-k name -x" is passed to pytest)
	$(VENV)/bin/python -m pytest $(ARGS)

test-deps:  ## install the programs that tests use: chromium, nginx, haproxy and others (Debian)
	@missing=''; \
	for program in $(TEST_PROGRAMS); do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v "$$program" >/dev/null || missing="$$missing $$program"; \
	done; \
	if [ -z "$$missing" ]; then echo 'The programs that tests use are all here.'; exit 0; fi; \
	missing=$$(echo "$$missing " | sed 's/ cc / gcc libc6-dev /'); \
	if ! command -v apt-get >/dev/null; then \
		echo "Missing:$$missing. This installs them with apt-get, which is not here: install them with your system's own package manager." >&2; exit 1; \
	fi; \
	sudo=''; \
	if [ "$$(id -u)" != 0 ]; then \
		sudo=$$(command -v sudo) || { echo "Missing:$$missing. As root: apt-get install$$missing" >&2; exit 1; }; \
	fi; \
	echo "Installing$$missing with apt-get (Debian may run them as services then; the tests start their own)"; \
	$$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing

check: install  ## formatting, lint and types
	$(CC) $(INBOX_FLAGS) -Werror -Wextra -Wpedantic -fsyntax-only gateway/rooms/native/inbox.c
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy $(SOURCES)

format: install  ## format the code, and fix what the linter can fix
	$(VENV)/bin/ruff check --fix-only --quiet
	$(VENV)/bin/ruff format

bench: install  ## measure latency and rate against a real LiveKit server (about 2 minutes)
	@$(VENV)/bin/python -m benchmarks.way_through $(ARGS)

bench-rooms: install  ## measure what open rooms cost, beside the SDK alone (about 8 minutes)
	@$(VENV)/bin/python -m benchmarks.open_rooms $(ARGS)

bench-send: install  ## measure how many texts a connection sends, beside the SDK alone (about 2 minutes)
	@$(VENV)/bin/python -m benchmarks.send_rate $(ARGS)

bench-streamed: install  ## measure texts that are streamed by POST, beside a bare SDK writer (about 3 minutes)
	@$(VENV)/bin/python -m benchmarks.streamed $(ARGS)

bench-joins: install  ## measure memory over 1,000 joins and leaves, beside the SDK alone (about 5 minutes)
	@$(VENV)/bin/python -m benchmarks.joins $(ARGS)

bench-cold: install  ## measure the first POST in a new room, beside a join by the SDK (about 1 minute)
	@$(VENV)/bin/python -m benchmarks.cold_post $(ARGS)

bench-delivery: install  ## measure events to 1,000 readers, beside nchan and Mercure (about 10 minutes; needs Go)
	@$(VENV)/bin/python -m benchmarks.delivery $(ARGS)

bench-agents: install  ## measure agent sessions: events, turns, many agents, beside the SDK alone (about 5 minutes)
	@$(VENV)/bin/python -m benchmarks.agents $(ARGS)

lock: install  ## write requirements*.txt from pyproject.toml (ARGS=--upgrade for the newest versions)
	$(COMPILE) $(ARGS) pyproject.toml --output-file requirements.txt
	$(COMPILE) $(ARGS) --constraints requirements.txt pyproject.toml --group dev --output-file requirements-dev.txt
	$(COMPILE) $(ARGS) --group agent --output-file requirements-agent.txt

clean:  ## remove .venv and everything that tools left
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage htmlcov build dist *.egg-info
	rm -f gateway/rooms/native/_inbox*
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# Without it the gateway does all the same, and says at its start that it could do with less.
$(INBOX): gateway/rooms/native/inbox.c Makefile
	@if ! command -v $(CC) >/dev/null; then \
		echo "No C compiler ($(CC)) is here: texts will take up to a half more processor time." >&2; \
	elif ! $(CC) $(INBOX_FLAGS) -shared -o $@.new $< || ! mv $@.new $@; then \
		echo "$< could not be compiled: texts will take up to a half more processor time." >&2; \
	fi

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "Python 3.11 or newer is needed, and '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo not here): make install PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing the locked packages into $(VENV) (about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-dev.txt
	@rm -f $(VENV)/.installed-* && touch $@
