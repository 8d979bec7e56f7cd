# `make setup` once; every other target sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
CONFIGS := bundles/wscxr_chest_xray/configs
DEMO ?= demo
# threads that wait sleep instead of spinning: on a busy machine that is many times faster
export OMP_WAIT_POLICY := PASSIVE
READY := $(VENV)/.ready

.PHONY: help setup test lint format demo bench gpu-check sanitize clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /|/' | awk -F'|' '{printf "make %-10s %s\n", $$1, $$2}'

setup: $(READY)  ## .venv with pinned, tested versions and the extension built

$(READY): pyproject.toml setup.py constraints.txt $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h')
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@echo "installing torch (about 1 minute)"
	@$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision setuptools wheel pybind11 ninja
	@echo "installing the rest and building the extension (about 3 minutes with nvcc, 1 without)"
	@$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[test,lint]'
	@$(RUN) -m monai_wscxr doctor
	@touch $@

test: setup  ## the test suite
	$(RUN) -m pytest

lint: setup  ## ruff, mypy, clang-format
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu')

format: setup  ## put the sources in order
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(VENV)/bin/clang-format -i $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu')

demo: setup  ## phantoms -> training -> evaluation -> report, offline
	@test -d $(DEMO)/phantoms/test || $(RUN) -m monai_wscxr phantom $(DEMO)/phantoms
	@# phantom lesions are small and all phantoms come from one machine: a small neighbourhood, few patches kept, no altered copies,
	@# and more passes over a small bank
	$(RUN) -m monai.bundle run training --config_file $(CONFIGS)/train.yaml --dataset_dir $(DEMO)/phantoms \
	  --output_dir $(DEMO)/run --neighbourhood 3 --retention 0.1 --epochs 25 --copies 0
	$(RUN) -m monai.bundle run evaluating --config_file $(CONFIGS)/evaluate.yaml --dataset_dir $(DEMO)/phantoms --output_dir $(DEMO)/run
	@echo; echo "The report is $(abspath $(DEMO))/run/report/index.html: open it in a browser."

bench: setup  ## kernel checks with pytest-benchmark, then a table per operator beside its peers (saved in benchmarks/)
	$(RUN) -m pytest tests/benchmarks/bench_*.py --benchmark-enable --benchmark-only
	$(RUN) tests/benchmarks/tables.py min_distance mine_top_r mixup streamed --threads 1,2

gpu-check: setup  ## tests marked gpu and kernel benchmarks, on this machine's GPU
	$(RUN) -m pytest -m gpu
	$(RUN) -m pytest tests/benchmarks/bench_*.py --benchmark-enable --benchmark-only --benchmark-json=benchmark_gpu.json

SANITIZED := build/sanitize
sanitize: setup  ## operator tests on a CPU module with address and undefined-behaviour checks
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	cp -r monai_wscxr tests pyproject.toml $(SANITIZED)/ && rm -f $(SANITIZED)/monai_wscxr/*.so
	WSCXR_BUILD=cpu WSCXR_SANITIZE=1 $(RUN) setup.py -q build_ext --build-lib $(SANITIZED) --build-temp $(SANITIZED)/objects
	cd $(SANITIZED) && ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
	  $(abspath $(RUN)) -m pytest tests/ops tests/test_bank_file.py -q -m "not gpu" -k "not compile and not export and not opcheck and not peak_memory"

clean:  ## remove what was built, not the environment
	rm -rf build $(DEMO) monai_wscxr/*.so *.egg-info .pytest_cache .mypy_cache .ruff_cache
