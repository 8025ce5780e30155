# Every verb makes its own virtual environment on first use: uv when it is present, else venv and pip.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := $(shell command -v uv 2>/dev/null)

.PHONY: help demo test check soak fix bench docs clean
help:
	@echo "make demo    a chat across two server processes and a worker, in your browser"
	@echo "make test    every test (under five minutes, no root, no server)"
	@echo "make check   format, lint, types, architecture and every test"
	@echo "make soak    ten failovers in a row under load, on each kind of server (four minutes)"
	@echo "make fix     format and mend what can be mended automatically"
	@echo "make bench   measure this machine, side by side with others; writes docs/benchmarks.md"
	@echo "make docs    build the documentation site; its code, commands and links are among the tests"

# $(call install,GROUP): an editable install with one dependency group, once per change of pyproject.toml.
ifdef UV
install = uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && uv pip install --quiet --python $(BIN)/python -e . --group $(1)
else
install = $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1" && $(BIN)/python -m pip install --quiet --disable-pip-version-check -e . --group $(1)
endif

$(VENV)/.ready-%: pyproject.toml
	@echo "==> Installing Trunkline and its '$*' tools into $(VENV) (first use only, about a minute)"
	@$(call install,$*)
	@touch $@
	@echo "==> Installed."

demo: $(VENV)/.ready-demo
	@$(BIN)/trunkline demo $(ARGS)

test: $(VENV)/.ready-check
	@echo "==> Running every test"
	@$(BIN)/python -m pytest -q -n 3 --dist loadfile $(ARGS)
	@echo "==> All tests passed."

check: $(VENV)/.ready-check
	@echo "==> Format, lint, types"
	@$(BIN)/ruff format --check src tests bench examples
	@$(BIN)/ruff check src tests bench examples
	@$(BIN)/mypy
	@$(MAKE) --no-print-directory test
	@echo "==> Everything is green."

soak: $(VENV)/.ready-check
	@TRUNKLINE_FAILOVERS=10 $(BIN)/python -m pytest -q -s tests/faults/test_redis_failovers.py $(ARGS)

fix: $(VENV)/.ready-check
	@$(BIN)/ruff check --fix src tests bench examples
	@$(BIN)/ruff format src tests bench examples

# An environment of its own: what one of the others brings would disturb the type checker.
bench:
	@$(MAKE) --no-print-directory VENV=.venv-bench .venv-bench/.ready-bench
	@.venv-bench/bin/python -m bench --merge --json docs/benchmarks/figures.json --markdown docs/benchmarks.md --plots docs/benchmarks $(ARGS)

docs: $(VENV)/.ready-docs
	@$(BIN)/python docs/make_promises.py
	@$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html $(ARGS)
	@echo "==> Open docs/_build/html/index.html"

clean:
	rm -rf $(VENV) .venv-bench dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
