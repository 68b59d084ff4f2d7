# M³ViT co-design. `make` lists the targets. Every target does its own set-up: a virtual environment in .venv/ with the
# exact versions of constraints.txt, made anew only when setup.cfg or constraints.txt change.

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?=
EXTRAS ?= train,export,rtl,dev
PIP_FLAGS ?=
QUALITY ?= quick
ARGS ?=

empty :=
comma := ,
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
BUILDING := $(VENV)/.building
PACKAGES := accel cli host model quant rtl_tb sim

# Two test processes with one thread each keep two cores busy without PyTorch's threads fighting for them. A file's tests
# stay in one process (tests/conftest.py), but for the RTL benches.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8 --dist loadgroup

.PHONY: help venv demo test test-all lint clean distclean

help: ## show this list
	@echo 'usage: make TARGET'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo 'options: QUALITY=better (demo: train longer), ARGS="..." (demo: passed on), PYTHON=python3.12, PIP_FLAGS="..."'

venv: $(STAMP) ## set up .venv/ with everything the other targets need

demo: $(STAMP) ## train, quantize, export, stream and verify; report in build/demo/report.html
	$(BIN)/m3vit demo --out build/demo $(if $(filter-out quick,$(QUALITY)),--quality $(QUALITY)) $(ARGS)

test: lint ## lint and all tests but the slow ones
	$(PYTEST) -m 'not slow'

test-all: lint ## lint and every test, minutes; line coverage of the RTL in build/rtl_tb/coverage.txt
	rm -f build/rtl_tb/*-coverage/coverage.dat
	M3VIT_RTL_COVERAGE=1 $(PYTEST)
	$(BIN)/python -m rtl_tb.coverage

lint: $(STAMP) ## ruff, mypy, and Verilator's warnings
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m rtl_tb.lint

clean: ## remove what was built, keep .venv/
	rm -rf build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find $(PACKAGES) $(wildcard tests benchmarks) -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## remove .venv/ as well
	rm -rf $(VENV)

# The stamp is written last, so a failure leaves none; .building tells the next run that an installation died halfway,
# and that nothing in the environment can be relied on.
$(STAMP): setup.cfg constraints.txt
	@set -eu; python=; \
	for candidate in $(or $(PYTHON),python3 python3.11 python3.12 python3.13 python3.10 /usr/bin/python3); do \
	  if "$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
	    python=$$candidate; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo 'make: error: $(or $(PYTHON),python3): expected Python 3.10 or newer with venv, found none; install it' \
	    '(Debian: python3 and python3-venv) or give PYTHON=/path/to/python3' >&2; exit 1; \
	fi; \
	if [ -e $(BUILDING) ] || ! $(BIN)/python -c 'import pip' 2>/dev/null; then \
	  echo "making $(VENV) with $$("$$python" --version)"; \
	  rm -rf $(VENV); \
	  "$$python" -m venv $(VENV); \
	fi; \
	touch $(BUILDING); \
	echo 'installing m3vit-codesign[$(EXTRAS)] into $(VENV) (a minute or more)'; \
	$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_FLAGS) \
	  -c constraints.txt -e '.[$(EXTRAS)]'; \
	rm -f $(BUILDING); \
	touch $@
