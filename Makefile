# `make test` from a bare clone makes .venv with the pinned requirements, installs fastdl into it as an
# editable package, which compiles its C++ kernels, and runs the tests. `make test PYTHON=python3 VENV=none` uses a Python that has torch
# as it is: nothing is downloaded, and fastdl is made importable from build/site alone.

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
OUT    ?= bench/results/local
SOURCES = $(wildcard csrc/*.* csrc/cpu/*.* csrc/cuda/*.*)
OPS     = conv2d batch_norm cross_entropy max_pool2d affine_grid_sample

INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps

INSTALL_DOCS = $(PY) -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt

ifeq ($(VENV),none)
PY    := $(PYTHON)
READY := build/site/.installed
export PYTHONPATH := $(CURDIR)/build/site$(if $(PYTHONPATH),:$(PYTHONPATH))
else
PY    := $(VENV)/bin/python
READY := $(VENV)/.installed
endif

PYTEST   = $(PY) -m pytest
PARALLEL = $(shell $(PY) -c "import xdist" 2>/dev/null && echo "-n $(JOBS) --dist loadfile")

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint docs bench gpu clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' $(MAKEFILE_LIST) | while IFS=: read -r name text; do \
		printf '  make %-10s%s\n' "$$name" "$$text"; done

demo: $(READY) ## a small network before and after conversion, with figures
	$(PY) -m fastdl demo

test: $(READY) ## the tests, but for the slow ones (those that need a GPU run where there is one)
	$(PYTEST) -m "not slow" $(PARALLEL)

test-slow: $(READY) ## the slow tests
	$(PYTEST) -m slow $(PARALLEL)

lint: $(READY) ## ruff, both ways
	$(PY) -m ruff check
	$(PY) -m ruff format --check

docs: $(READY) ## the pages as a site, in build/docs
	$(PY) -m mkdocs --version > /dev/null 2>&1 || $(INSTALL_DOCS)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

bench: $(READY) ## the benchmarks
	$(PY) -m fastdl bench --models --json $(OUT)/bench.json

# A part that fails leaves the others their turn; the limits add up to nine minutes.
gpu: $(READY) ## parity, GPU tests and benchmarks on this machine's GPU, results in OUT
	@mkdir -p $(OUT); failed=0; set -x; \
	$(PY) -m fastdl info --json > $(OUT)/info.json || failed=1; \
	timeout 180 $(PY) -m fastdl parity --device cuda --json $(OUT)/parity.json || failed=1; \
	timeout 130 $(PYTEST) -m gpu || failed=1; \
	for op in $(OPS); do \
		timeout 45 $(PYTEST) bench/bench_$$op.py --benchmark-json=$(OUT)/bench_$$op.json || failed=1; \
	done; \
	exit $$failed

clean: ## remove what was built, .venv excepted
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .benchmarks .hypothesis demo_output
	rm -f fastdl/*.so fastdl/native/*.so fastdl/native/build.json $(VENV)/.installed

$(VENV)/.installed: requirements.txt pyproject.toml setup.py $(SOURCES)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(INSTALL) --editable .
	touch $@

# An editable install works through a .pth file, which Python reads in site folders only: sitecustomize
# makes build/site one.
build/site/.installed: pyproject.toml setup.py $(SOURCES)
	rm -rf build/site
	$(INSTALL) --no-index --target build/site --editable .
	echo 'import os, site; site.addsitedir(os.path.dirname(__file__))' > build/site/sitecustomize.py
	touch $@
