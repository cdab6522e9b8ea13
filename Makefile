# Two commands on a fresh machine: `make demo` and `make test`. They set up their own .venv.
# A build of torch of your choice: make demo TORCH="--index-url https://download.pytorch.org/whl/cu130 torch==2.13.0"

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TESTED := $(VENV)/.installed-test
OHIF := $(or $(PLEURA_OHIF),.cache/ohif)
OHIF_VERSION := 3.13.2
OHIF_SHA256 := b189d3963bfc58e9394a9db8c7be75d07beb029ec211dbb126d47b62969dd3f1

.PHONY: demo test check wheel-demo ohif benchmarks train clean chaos soak recipes

demo: $(INSTALLED)
	$(BIN)/pleura demo

test: check
	$(BIN)/pytest -n auto --dist loadgroup

check: $(TESTED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The OHIF viewer as its authors publish it (50 MB), for tests/peers/test_viewers.py. Its 150 MB of neural networks stay out.
ohif: $(OHIF)/package/dist/index.html

$(OHIF)/package/dist/index.html:
	mkdir -p $(OHIF)
	set -e; cd $(OHIF); npm pack --silent @ohif/app@$(OHIF_VERSION); \
	echo "$(OHIF_SHA256)  ohif-app-$(OHIF_VERSION).tgz" | sha256sum --check --quiet; \
	tar xzf ohif-app-$(OHIF_VERSION).tgz --exclude=package/dist/ort; rm ohif-app-$(OHIF_VERSION).tgz

# The wheel, installed in a clean environment elsewhere, does what the checkout does.
wheel-demo: $(TESTED)
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .
	set -e; folder=$$(mktemp -d); trap 'rm -rf $$folder' EXIT; \
	$(PYTHON) -m venv $$folder/venv; \
	$$folder/venv/bin/pip install --disable-pip-version-check --quiet --no-compile -c constraints.txt $(TORCH) dist/pleura-*.whl; \
	cd $$folder && venv/bin/pleura demo

# Memory over 10,000 associations and images, 100,000 bare connects, 20,000 mutated conversations: about an hour.
soak: $(TESTED)
	$(BIN)/python -m tests.soak

benchmarks: $(TESTED)
	$(BIN)/pip install --disable-pip-version-check --quiet --no-compile -c constraints.txt -e '.[benchmark]'
	$(BIN)/python -m benchmarks.end_to_end
	$(BIN)/python -m benchmarks.pipeline
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.decode
	$(BIN)/python -m benchmarks.encode
	$(BIN)/python -m benchmarks.receive
	$(BIN)/python -m benchmarks.send
	$(BIN)/python -m benchmarks.ledger
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.train

# Every recipe at its real size, a few images each.
recipes: $(TESTED)
	$(BIN)/python -m tests.recipes

# Faults to survive, the long form: 1,000 kills and all the other faults, a table, status 1 on any violation. The short
# form is part of `make test`. Root is needed for small file systems (full disks).
chaos: $(TESTED)
	$(BIN)/python -m tests.chaos --kills 1000 $(CHAOS)

# The default model, again: some two hours on two cores. DATA is laid out as docs/training.md says.
train: $(INSTALLED)
	$(BIN)/pleura train --recipe default --data $(DATA) --out runs/default

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --disable-pip-version-check --quiet --no-compile $(TORCH)
	$(BIN)/pip install --disable-pip-version-check --quiet --no-compile -c constraints.txt -e .
	touch $@

$(TESTED): $(INSTALLED)
	$(BIN)/pip install --disable-pip-version-check --quiet --no-compile -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) demo runs build dist
