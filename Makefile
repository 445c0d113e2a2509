# One command each; all of them set up .venv first, on a machine that has Python 3.11+ and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
KERNELS := $(wildcard plugins/CMakeLists.txt plugins/core/* plugins/onnxruntime/* plugins/tensorrt/*)

.PHONY: help setup demo test test-serve lint format browser clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 12

setup: $(STAMP)  ## make .venv with everything that the other targets need

$(STAMP): pyproject.toml $(KERNELS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "robust-export needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@$(BIN)/python -m pip install --quiet --no-deps kernel-lens==2.0.1 || \
		echo "Without TensorRT's headers, which that package has, the tests of its plugin are skipped."
	@$(BIN)/robust-export plugins build || echo "Everything works without the fused kernel, but slower."
	@touch $@

demo: $(STAMP)  ## train, export and verify on real data, in minutes
	$(BIN)/robust-export demo

test: $(STAMP)  ## run every test
	$(BIN)/python -m pytest -n auto

test-serve:  ## serve in a fresh .venv-serve without torch, and ask with another client
	rm -rf .venv-serve
	$(PYTHON) -m venv .venv-serve
	.venv-serve/bin/python -m pip install --quiet '.[serve]' 'tritonclient[grpc,http]'
	.venv-serve/bin/python tests/serving/without_torch.py

lint: $(STAMP)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

browser:  ## install Debian's Chromium, which the tests of the pages use (needs root)
	apt-get update -qq
	apt-get install -y -qq chromium

clean:  ## remove what the targets made, but for bundles under exported/
	rm -rf $(VENV) .venv-serve .mypy_cache .ruff_cache .pytest_cache
