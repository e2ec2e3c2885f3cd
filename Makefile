# Every target makes what it needs: on a fresh machine with Python 3.11, `make demo` and `make test` are all there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

DIR ?= /tmp/ebm-local

.PHONY: demo sweep test test-all test-s3 test-browser test-prometheus test-operate test-nodes up down kills soak fuzz check bench bench-check bench-quality bench-catalog bench-scoring bench-saving bench-loading bench-sweep bench-control-plane sweep-kills docs clean
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

# The paper's Table 2 in small, on digits: minutes, and a table that shows that the grid runs.
sweep: $(VENV)/installed
	$(BIN)/ebm sweep table2 --smoke

# The suite: `test` without what is marked `full`, `test-all` with it, as CI runs it. Either fails if fewer tests pass
# than tests/floor.txt says. torch.compile wants a C++ compiler: installed (Debian's package) where it is missing.
APART := not s3 and not browser and not prometheus and not operate and not nodes and not kills
test: MARKED := $(APART) and not full
test: TAKES := about five minutes on two fast cores, ten on slow ones; `make test-all` runs the long tests too
test-all: MARKED := $(APART)
test-all: TAKES := about 21 minutes on two fast cores, twice that on slow ones
test test-all: $(VENV)/installed-dev
	tests/install.sh g++ g++
	@echo '$@: $(TAKES)'
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "$(MARKED)" --floor $@ $(TEST_ARGS)

# The storage contract against a real S3 server (Ceph RGW from Debian's packages), started and stopped here.
test-s3: $(VENV)/installed-dev
	PYTHON=$(BIN)/python bash tests/s3/run.sh

# The pages of `ebm report` in headless Chromium (Debian's package, installed here where it is missing).
test-browser: $(VENV)/installed-dev
	PYTHON=$(BIN)/python bash tests/browser/run.sh

# The scrape configuration, alert rules and dashboard on a real Prometheus server (Debian's package).
test-prometheus: $(VENV)/installed-dev
	PYTHON=$(BIN)/python bash tests/operate/run.sh prometheus

# Submit, watch, stop and resume on a real cluster with token, S3 server and Prometheus, started and stopped here.
test-operate: $(VENV)/installed-dev
	PYTHON=$(BIN)/python bash tests/operate/run.sh cluster

# Nodes of their own addresses that are killed, cut off, slowed down and taken away; about twelve minutes, as root.
test-nodes: $(VENV)/installed-dev
	PYTHON=$(BIN)/python bash tests/nodes/run.sh

# That cluster to play with, and one job on it; `make down` ends all of it. DIR=/tmp/other DASHBOARD_PORT=... for more.
up: $(VENV)/installed
	BIN=$(abspath $(BIN)) deploy/local/cluster.sh start $(DIR)
	. $(DIR)/env && PATH=$(abspath $(BIN)):$$PATH ebm submit train digits name=first storage=s3://runs/here
	@echo "the rest of it, once you have typed:  . $(DIR)/env"
	@echo "  ebm jobs;  ebm logs first -f;  ebm stop first;  Prometheus is at \$$PROMETHEUS_URL, Grafana (if any) at \$$GRAFANA_URL"

down:
	BIN=$(abspath $(BIN)) deploy/local/cluster.sh stop $(DIR)
	rm -rf $(DIR)

# Bytes that nobody should have written, into every reader, for ten minutes; FUZZ_SECONDS=60 for less. atheris guides it
# where its wheel installs; without, the changes are the same and unguided.
FUZZ_SECONDS ?= 600
fuzz: $(VENV)/installed-dev
	-$(BIN)/python -m pip install --quiet --only-binary :all: atheris -c constraints.txt
	nice -n 10 $(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

# Whole jobs killed at chosen moments, in a folder and on moto; then 200 random kills of a job that only saves, in a
# folder, on moto and on Ceph RGW: about half an hour.
kills: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m kills
	CONFAB_KILLS=200 $(BIN)/python -m pytest -s --timeout 0 -k random tests/orchestrator/training/test_saving.py
	CONFAB_KILLS=200 PYTHON=$(BIN)/python bash tests/s3/run.sh -s --timeout 0 -k random_kills

# Two jobs for SOAK_MINUTES, one of them hurt every few minutes; both must end the same, and nothing may grow.
SOAK_MINUTES ?= 120
soak: $(VENV)/installed-dev
	$(BIN)/python -u -m tests.soak --minutes $(SOAK_MINUTES)

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m tests.audit

# Speed and memory as ratios measured in one run: about half an hour on two cores, most of it compiling the first time.
# BENCH_ARGS='--only augmentation cost_curves' runs a part.
bench bench-check: $(VENV)/installed-dev
	OMP_NUM_THREADS=2 $(BIN)/python -u -m benchmarks.bench $(if $(filter bench-check,$@),--check benchmarks/recorded.json) $(BENCH_ARGS)

# Processor seconds until digits are drawn to a fixed distance of their judge, about two minutes; QUALITY_ARGS='--preset
# digits_paper' for the paper's recipe. docs/results/quality.md keeps the rows.
bench-quality: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -u -m benchmarks.quality $(QUALITY_ARGS)

# How long a list of 10,000 runs takes, from a folder and from a local S3 server without signatures.
bench-catalog: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.catalog

# What scoring costs: Frechet distance, merging, two actors, memory, beside training. About six minutes.
bench-scoring: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -u -m benchmarks.scoring

# What storing a checkpoint costs training, and what reading it back takes. About a minute.
bench-saving: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -u -m benchmarks.saving

# How long training waits for images, from files, prepared shards and a server; and other ways to read. A few minutes.
bench-loading: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -u -m benchmarks.loading

# What a sweep costs over the same jobs one after another: about ten minutes.
bench-sweep: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -u -m benchmarks.sweep_overhead

# What hundreds of workers ask of scheduler, driver and store, with sleep for steps, and what gloo's exchanges cost: about
# twenty minutes and 17 GB. CONTROL_ARGS='--ranks 8 64' takes five.
bench-control-plane: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -u -m benchmarks.control_plane $(CONTROL_ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python -u -m benchmarks.exchange

# Kill -9 the driver of a small sweep at ten random moments: the results must be those of one that nobody killed.
sweep-kills: $(VENV)/installed-dev
	$(BIN)/python -u -m benchmarks.sweep_kills --kills 10

# The pages of docs/ as a site in site/, without warnings or not at all; open site/index.html.
docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -e '.[docs]' -c constraints.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf site $(VENV) .pytest_cache .ruff_cache .import_linter_cache
