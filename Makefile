# SPDX-License-Identifier: Apache-2.0
# Needs python3 (3.11 or later), gcc and make; `make e2e` also root and Go. Each target sets up what it needs in .venv.

VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
NATIVE := $(wildcard native/*.pyx native/*.pxd native/src/*.c native/src/*.h native/include/*.h native/*.pxi native/nvml_sim/*.c native/nvml_sim/*.h native/nvml_sim/*.py)
TESTS ?= tests/unit tests/kubelet

.DEFAULT_GOAL := help
.PHONY: help demo test e2e check bench hardware image provision protos format sanitize clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The constraints file pins what CI runs; pyproject.toml has the lower bounds.
$(VENV)/.deps: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "python3 cannot make a virtual environment: install Debian's python3-venv" >&2; exit 1; }
	@echo "installing dependencies into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt setuptools Cython --group dev
	@touch $@

$(VENV)/.built: $(VENV)/.deps setup.py $(NATIVE)
	@echo "building native modules ..."
	@DEVICEPLUGIN_WERROR=$(if $(CI),1,) $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable .
	@touch $@

demo: $(VENV)/.built ## watch a node's devices being served, broken and repaired
	@$(BIN)/deviceplugin demo

test: $(VENV)/.built ## run the tests
	$(BIN)/python -m pytest -q $(TESTS)

e2e: $(VENV)/.built ## run against a real kubelet and containerd (root, Go)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -q tests/e2e

provision: ## bring what e2e needs: Debian's packages, and Kubernetes from its Go modules (root, Go; minutes the first time)
	$(PYTHON) tools/e2e/provision.py

image: ## build the image into build/deviceplugin.tar (root, buildah)
	mkdir -p build && $(PYTHON) tools/image/build.py build/deviceplugin.tar

check: $(VENV)/.built ## lint, types, layers, generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	PATH="$(BIN):$$PATH" $(BIN)/cython-lint native/*.pyx native/*.pxd
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files 'native/*.c' 'native/*.h')
	PYTHON=$(BIN)/python tools/protos.sh --check
	$(BIN)/python tools/chart_schema.py --check

format: $(VENV)/.deps ## format everything
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'native/*.c' 'native/*.h')

protos: $(VENV)/.deps ## generate deviceplugin/kubelet/*_pb2.py from proto/
	PYTHON=$(BIN)/python tools/protos.sh

sanitize: $(VENV)/.deps ## run the native tests under AddressSanitizer and UBSan
	PYTHON="$(CURDIR)/$(BIN)/python" tools/sanitize.sh

bench: $(VENV)/.built ## measure, beside peers and oracles (Go for the client)
	$(BIN)/python -m bench

hardware: $(VENV)/.built ## run the plugins on this machine's own GPUs and caches
	$(BIN)/python tools/hardware.py --record docs/hardware-runs.md

clean: ## remove what was built
	rm -rf $(VENV) build dist *.egg-info deviceplugin/_native/*.so
