# One command each; all of them set up .venv first, on a machine that has Python 3.11+ and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TOOLS := .venv-tools
PORTABLE := tests/test_architecture.py tests/test_project.py tests/cli tests/nn/test_sparta.py \
	tests/export/test_exporter.py tests/runtimes/test_onnxruntime.py tests/serving/test_inference.py  # for test-python
LOCK := $(TOOLS)/bin/uv pip compile --quiet --generate-hashes --universal --python-version 3.11 \
	--no-emit-index-url --custom-compile-command 'make lock' $(UPGRADE)
KERNELS := $(wildcard plugins/CMakeLists.txt plugins/core/* plugins/onnxruntime/* plugins/tensorrt/* plugins/training/*)

.PHONY: help setup demo docs test test-python test-serve docker-test kserve-test lock sbom lint format proto browser clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 12

setup: $(STAMP)  ## make .venv with everything that the other targets need

$(STAMP): pyproject.toml requirements/headers.lock $(KERNELS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "robust-export needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement requirements/headers.lock || \
		echo "Without these wheels the tests of the TensorRT plugin and of Triton's config.pbtxt are skipped."
	@$(BIN)/robust-export plugins build || echo "Everything works without the fused kernel, but slower."
	@touch $@

demo: $(STAMP)  ## train, export and verify on real data, in minutes
	$(BIN)/robust-export demo

test: $(STAMP)  ## run every test
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-serve:  ## serve in a fresh .venv-serve without torch, and ask with another client
	rm -rf .venv-serve
	$(PYTHON) -m venv .venv-serve
	.venv-serve/bin/python -m pip install --quiet '.[serve]' 'tritonclient[grpc,http]'
	.venv-serve/bin/python tests/serving/without_torch.py

test-python:  ## run import, command line, export and serving tests on another Python: make test-python PYTHON=python3.13
	$(PYTHON) -m venv .venv-$(notdir $(PYTHON))
	.venv-$(notdir $(PYTHON))/bin/python -m pip install --quiet --editable '.[dev]'
	.venv-$(notdir $(PYTHON))/bin/python -m pytest $(PORTABLE)

docker-test: $(STAMP)  ## build the image `cpu` without a Docker engine, run it and ask it (needs root, buildah, debootstrap)
	$(BIN)/python tests/deploy/cpu_image.py

kserve-test:  ## check deploy/kserve/ by KServe's SDK, in a fresh .venv-kserve
	rm -rf .venv-kserve
	$(PYTHON) -m venv .venv-kserve
	.venv-kserve/bin/python -m pip install --quiet 'kserve>=0.21' pyyaml
	.venv-kserve/bin/python tests/deploy/kserve_models.py

$(TOOLS)/.installed: requirements/tools.lock
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --require-hashes --requirement requirements/tools.lock
	@touch $@

lock: $(TOOLS)/.installed  ## write requirements/*.lock again; UPGRADE=--upgrade takes newer versions
	$(LOCK) requirements/build.in --output-file requirements/build.lock
	$(LOCK) requirements/tools.in --output-file requirements/tools.lock
	$(LOCK) --no-deps requirements/headers.in --output-file requirements/headers.lock
	$(LOCK) pyproject.toml requirements/serve.in --extra serve --override requirements/serve.overrides \
		--output-file requirements/serve.lock
	$(LOCK) pyproject.toml requirements/export.in --extra train --output-file requirements/export.lock

sbom: $(TOOLS)/.installed  ## write sbom.cdx.json: what the image `cpu` has of Python, as CycloneDX
	rm -rf .venv-sbom
	$(PYTHON) -m venv .venv-sbom
	$(TOOLS)/bin/python -m pip --python .venv-sbom/bin/python install --quiet --require-hashes --no-deps \
		--requirement requirements/serve.lock
	$(TOOLS)/bin/python -m pip --python .venv-sbom/bin/python install --quiet --no-deps .
	.venv-sbom/bin/python -m pip uninstall --quiet --yes pip setuptools
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --validate \
		--output-format JSON --spec-version 1.6 --output-file sbom.cdx.json .venv-sbom/bin/python

lint: $(STAMP)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## build the documentation as a web site in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

proto: $(STAMP)  ## compile the descriptors of serving/proto/*.proto
	cd pipeline/robust_export/serving/proto && for name in open_inference triton_model_config; do \
		$(CURDIR)/$(BIN)/python -m grpc_tools.protoc -I. --descriptor_set_out=$$name.binpb $$name.proto || exit 1; done

browser:  ## install Debian's Chromium, which the tests of the pages use (needs root)
	apt-get update -qq
	apt-get install -y -qq chromium

clean:  ## remove what the targets made, but for bundles under exported/
	rm -rf site $(VENV) .venv-serve .venv-tools .venv-kserve .venv-sbom sbom.cdx.json .mypy_cache .ruff_cache .pytest_cache
