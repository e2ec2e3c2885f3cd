# Every target makes what it needs: on a fresh machine with Python 3.11, `make demo` and `make test` are all there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-s3 kills check bench bench-check clean
.DELETE_ON_ERROR:

# The environment, once for running and once more for developing; remade when its description changes.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e . -c constraints.txt
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	touch $@

# Train the digits preset on this machine, score it, and say where the pictures are.
demo: $(VENV)/installed
	$(BIN)/ebm train digits

# The whole suite. It fails if fewer tests are collected than tests/floor.txt says.
test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not s3" --floor $(TEST_ARGS)

# The storage contract against a real S3 server (Ceph RGW from Debian's packages), started and stopped here.
test-s3: $(VENV)/installed-dev
	PYTHON=$(BIN)/python bash tests/s3/run.sh

# 200 random kills of a job that only saves, in a folder, on moto and on Ceph RGW: about twenty minutes.
kills: $(VENV)/installed-dev
	CONFAB_KILLS=200 $(BIN)/python -m pytest -s --timeout 0 -k random tests/orchestrator/test_saving.py
	CONFAB_KILLS=200 PYTHON=$(BIN)/python bash tests/s3/run.sh -s --timeout 0 -k random_kills

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Speed and memory as ratios measured in one run: about half an hour on two cores, most of it compiling the first time.
# BENCH_ARGS='--only augmentation cost_curves' runs a part.
bench bench-check: $(VENV)/installed-dev
	OMP_NUM_THREADS=2 $(BIN)/python -u -m benchmarks.bench $(if $(filter bench-check,$@),--check benchmarks/recorded.json) $(BENCH_ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache
