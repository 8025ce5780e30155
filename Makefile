# Every verb makes its own virtual environment on first use: uv when it is present, else venv and pip.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := $(shell command -v uv 2>/dev/null)

.PHONY: help demo test check legs release-check soak fix bench docs pictures clean
help:
	@echo "make demo    a chat across two server processes and a worker, in your browser"
	@echo "make test    every test (about six minutes on two cores, no root, no server)"
	@echo "make check   format, lint, types, architecture and every test"
	@echo "make legs    the suite under other circumstances, each a verb of its own: see CONTRIBUTING.md"
	@echo "make release-check   builds wheel and sdist and runs the suite against what was built"
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
	@$(BIN)/python -m pytest -q -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)
	@echo "==> All tests passed."

check: $(VENV)/.ready-check
	@echo "==> Format, lint, types"
	@$(BIN)/ruff format --check src tests bench examples
	@$(BIN)/ruff check src tests bench examples
	@$(BIN)/mypy
	@$(MAKE) --no-print-directory test
	@echo "==> Everything is green."

# Legs: the suite, or what of it concerns the leg, under other circumstances. Each has an environment of its own where the
# installed packages differ. BROAD leaves out what is about the machine (faults, browsers, plots) or about the source tree.
BROAD   := $(filter-out tests/faults/ tests/browser/ tests/bench/ tests/docs/ tests/typing/ tests/__pycache__/,$(wildcard tests/*/))
CORE    := tests/pure tests/fundamentals tests/layer tests/consumers tests/processes tests/extras/test_without_extras.py \
           $(wildcard tests/transports/test_*.py)
# Those that need a package, each by its own.
NOT_CORE := $(addprefix --ignore=tests/,pure/test_typed.py pure/test_envelope.py consumers/test_consumer_typed.py \
           consumers/test_beside_django_channels.py processes/test_presence_processes.py) -k "not encrypt and not starlette and not redis"
PYTHONS ?= python3.12 python3.13 python3.14
PYTEST  := -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder
LEGS    := test-core test-oldest test-strict test-optimised test-uvloop test-random test-pythons
.PHONY: $(LEGS) mistakes
legs: $(LEGS) release-check

test-core: # asgiref and ormsgpack only
	@$(MAKE) --no-print-directory VENV=.venv-core .venv-core/.ready-tools
	@echo "==> No extras: memory, embedded, consumers, and what the others say"
	@.venv-core/bin/python $(PYTEST) $(CORE) $(NOT_CORE) $(ARGS)

test-oldest: # the lowest version of each package that pyproject.toml allows
	@mkdir -p .venv-oldest && $(PYTHON) .ci/oldest.py > .venv-oldest/constraints.txt
	@PIP_CONSTRAINT=$(CURDIR)/.venv-oldest/constraints.txt UV_CONSTRAINT=$(CURDIR)/.venv-oldest/constraints.txt \
	  $(MAKE) --no-print-directory VENV=.venv-oldest .venv-oldest/.ready-test
	@echo "==> The oldest packages that pyproject.toml allows"
	@$(PYTHON) .ci/oldest.py --installed .venv-oldest/bin/python
	@.venv-oldest/bin/python $(PYTEST) $(BROAD) $(ARGS)

test-strict: $(VENV)/.ready-check # warnings are errors in every process, but one that Channels' own worker gives
	@echo "==> -W error, in this process and in all it starts"
	@PYTHONWARNINGS="error,ignore:async_to_sync was passed a non-async-marked callable" $(BIN)/python $(PYTEST) $(BROAD) $(ARGS)

test-optimised: $(VENV)/.ready-check # no assert statement runs but those that pytest rewrites
	@echo "==> python -O, in this process and in all it starts"
	@PYTHONOPTIMIZE=1 $(BIN)/python $(PYTEST) -p no:cacheprovider $(BROAD) $(ARGS)

# A uvloop that is closed warns of the sockets it still has; where the warning is an error it hangs.
test-uvloop: $(VENV)/.ready-check # uvloop in place of asyncio's loop
	@echo "==> uvloop, in this process and in all it starts"
	@PYTHONPATH=$(CURDIR)/.ci/uvloop $(BIN)/python $(PYTEST) -W "ignore:unclosed resource:ResourceWarning" $(BROAD) $(ARGS)

test-random: $(VENV)/.ready-check # another order each time; the head of the output says how to have it again
	@echo "==> Random order"
	@$(BIN)/python $(PYTEST) -p randomly $(BROAD) $(ARGS)

test-pythons: # other interpreters that this machine has
	@for python in $(PYTHONS); do \
	  if ! PYENV_VERSION=$$(pyenv versions --bare 2>/dev/null | paste -sd:) $$python -V >/dev/null 2>&1; then \
	    echo "==> NOT RUN HERE: $$python is not on this machine"; continue; fi; \
	  export PYENV_VERSION=$$(pyenv versions --bare 2>/dev/null | paste -sd:); \
	  $(MAKE) --no-print-directory PYTHON=$$python VENV=.venv-$$python .venv-$$python/.ready-test && \
	  echo "==> $$(.venv-$$python/bin/python -V)" && \
	  .venv-$$python/bin/python $(PYTEST) $(BROAD) $(ARGS) || exit 1; \
	done

release-check: $(VENV)/.ready-check # what would be published, installed as users install it
	@.ci/release-check $(PYTHON) $(ARGS)

soak: $(VENV)/.ready-check
	@TRUNKLINE_FAILOVERS=10 $(BIN)/python -m pytest -q -s tests/faults/test_redis_failovers.py tests/faults/test_nats_cluster.py \
		tests/transports/nats/test_nats_recovering_layer.py $(ARGS)

fix: $(VENV)/.ready-check
	@$(BIN)/ruff check --fix src tests bench examples
	@$(BIN)/ruff format src tests bench examples

# An environment of its own: what one of the others brings would disturb the type checker.
bench:
	@$(MAKE) --no-print-directory VENV=.venv-bench .venv-bench/.ready-bench
	@.venv-bench/bin/python -m bench --merge --json docs/benchmarks/figures.json --markdown docs/benchmarks.md --plots docs/benchmarks $(ARGS)
	@.venv-bench/bin/python docs/make_front.py

docs: $(VENV)/.ready-docs
	@$(BIN)/python docs/make_promises.py
	@$(BIN)/python docs/make_front.py
	@$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html $(ARGS)
	@echo "==> Open docs/_build/html/index.html"

mistakes: $(VENV)/.ready-check # makes every mistake of docs/mistakes.md again
	@PYTHONPATH=tests $(BIN)/python docs/make_mistakes.py

pictures: $(VENV)/.ready-check # takes the documentation's pictures anew; needs Chromium
	@$(BIN)/python docs/make_pictures.py

clean:
	rm -rf $(VENV) .venv-* dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
