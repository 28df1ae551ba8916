# `make test` from a bare clone makes .venv with the pinned requirements, installs fastdl into it as an
# editable package, which compiles its C++ kernels, and runs the tests. `make test PYTHON=python3 VENV=none`
# uses a Python that has torch as it is: nothing is downloaded, and fastdl is made importable from build/site
# alone.

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
OUT    ?= bench/results/local
PARTS  ?=
SOURCES = $(wildcard csrc/*.* csrc/cpu/*.* csrc/cuda/*.*)
CPP     = $(foreach ending,h cpp cu cuh,*.$(ending) */*.$(ending))

INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps

INSTALL_DOCS = $(PY) -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt

ifeq ($(VENV),none)
PY    := $(PYTHON)
READY := build/site/.installed
EXTRAS :=
export PYTHONPATH := $(CURDIR)/build/site$(if $(PYTHONPATH),:$(PYTHONPATH))
else
PY    := $(VENV)/bin/python
READY := $(VENV)/.installed
EXTRAS := $(VENV)/.extras
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

test-slow: $(READY) $(EXTRAS) ## the slow tests
	$(PYTEST) -m slow $(PARALLEL)

lint: $(READY) ## ruff, both ways; clang-format
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	@echo clang-format --dry-run --Werror
	@$(PY) -c "from clang_format import clang_format as run; run()" --dry-run --Werror $(wildcard $(addprefix csrc/,$(CPP)) $(addprefix tests/emulation/,$(CPP)))

docs: $(READY) ## the pages as a site, in build/docs
	$(PY) -m mkdocs --version > /dev/null 2>&1 || $(INSTALL_DOCS)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

bench: $(READY) ## the benchmarks
	$(PY) -m fastdl bench --models --json $(OUT)/bench.json

# If the C++ does not compile there, what is in Triton and Python is still worth the visit.
gpu: ## parity, GPU tests, sanitizers, benchmarks on this machine's GPU; results in OUT, PARTS names some
	@mkdir -p $(OUT)
	@start=$$(date +%s); $(MAKE) $(READY) > $(OUT)/build.log 2>&1 || { tail -n 40 $(OUT)/build.log; \
		FASTDL_NATIVE=0 $(MAKE) $(READY); }; echo "built in $$(($$(date +%s) - start)) s" | tee -a $(OUT)/build.log
	$(PY) -m fastdl.bench.gpu $(OUT) $(PARTS)

clean: ## remove what was built, but not .venv, nor what was trained or measured
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .benchmarks .hypothesis demo_output
	rm -f fastdl/*.so fastdl/native/*.so fastdl/native/build.json $(VENV)/.installed $(VENV)/.extras

$(VENV)/.installed: requirements.txt pyproject.toml setup.py $(SOURCES)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(INSTALL) --editable .
	touch $@

# Without their dependencies: torchvision would bring another torch.
$(VENV)/.extras: requirements-extras.txt | $(READY)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-extras.txt
	touch $@

# An editable install works through a .pth file, which Python reads in site folders only: sitecustomize
# makes build/site one.
build/site/.installed: pyproject.toml setup.py $(SOURCES)
	rm -rf build/site
	$(INSTALL) --no-index --target build/site --editable .
	echo 'import os, site; site.addsitedir(os.path.dirname(__file__))' > build/site/sitecustomize.py
	touch $@
