# Everything a newcomer needs is two targets: `make demo` and `make test`. Both set up `.venv` by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Flower would start `uv sync` on torch at every run; telemetry and update checks have no place here.
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: demo test check install clean

demo: install
	$(BIN)/fedsec simulate --out runs/demo --fresh

# In the order of the folders: xdist would put the files with few tests last, and those are the long ones. Three workers on two cores, since
# one of them waits most of the time: for rounds, deadlines and processes. The tests start a hundred processes, so compiled code is kept.
test: export PYTHONDONTWRITEBYTECODE :=
test: install check
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(STAMP)

# torch first and pinned: left to itself, pip would pick a build with several GB of CUDA packages.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[ray,dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
