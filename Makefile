# Two commands work on a fresh machine: `make demo` and `make test`. They set up a virtual
# environment in .venv. To use another build of torch, such as one for CUDA:
#   make demo TORCH="--index-url https://download.pytorch.org/whl/cu130 torch==2.13.0"

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := pip install --disable-pip-version-check --quiet --no-compile
INSTALLED := $(VENV)/.installed
TESTED := $(VENV)/.installed-test
# Tests with peers wait more than they compute, so four processes keep two cores busy.
TEST_PROCESSES ?= $(shell echo $$(( $$(nproc) + 2 )))
OHIF := $(or $(PLEURA_OHIF),.cache/ohif)
OHIF_VERSION := 3.13.2
OHIF_SHA256 := b189d3963bfc58e9394a9db8c7be75d07beb029ec211dbb126d47b62969dd3f1

# With this variable set, each process would compile torch and all other libraries again, which
# takes 10 s of processor time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test tests check lint types docs wheel-demo ohif benchmarks train clean chaos soak recipes
.PHONY: deb image report requirements sbom audit licences

demo: $(INSTALLED)
	$(BIN)/pleura demo

# mypy uses a single core for a minute, so it runs beside the tests.
test: lint
	$(MAKE) --no-print-directory -j2 types tests

check: lint types

lint: $(TESTED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TESTED)
	$(BIN)/mypy

tests: $(TESTED)
	$(BIN)/pytest -n $(TEST_PROCESSES) --dist loadgroup

# Build the pages of docs/ as a site in site/. The build is strict: it fails at a dead link.
docs: $(INSTALLED)
	$(BIN)/$(PIP_INSTALL) -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build

# Download the OHIF viewer as its authors publish it (50 MB), for tests/peers/test_viewers.py,
# without its neural networks (150 MB).
ohif: $(OHIF)/package/dist/index.html

$(OHIF)/package/dist/index.html:
	mkdir -p $(OHIF)
	set -e; cd $(OHIF); npm pack --silent @ohif/app@$(OHIF_VERSION); \
	echo "$(OHIF_SHA256)  ohif-app-$(OHIF_VERSION).tgz" | sha256sum --check --quiet; \
	tar xzf ohif-app-$(OHIF_VERSION).tgz --exclude=package/dist/ort; \
	rm ohif-app-$(OHIF_VERSION).tgz

# Install the wheel in a clean environment outside the checkout and run the demo from there.
wheel-demo: $(TESTED)
	rm -f dist/pleura-*.whl
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .
	set -e; folder=$$(mktemp -d); trap 'rm -rf $$folder' EXIT; \
	$(PYTHON) -m venv $$folder/venv; \
	$$folder/venv/bin/$(PIP_INSTALL) -c constraints.txt $(TORCH) dist/pleura-*.whl; \
	cd $$folder && venv/bin/pleura demo

# Check memory over 10,000 associations and images, 100,000 bare TCP connects and 20,000 mutated
# conversations. Takes about an hour.
soak: $(TESTED)
	$(BIN)/python -m tests.soak

benchmarks: $(TESTED)
	$(BIN)/$(PIP_INSTALL) -c constraints.txt -e '.[benchmark]'
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
	$(BIN)/python -m benchmarks.cache

# Train every recipe at its real size, with a few images each.
recipes: $(TESTED)
	$(BIN)/python -m tests.recipes

# The long form of the chaos test: 1,000 kills and every other fault, then a table. Its exit status
# is 1 on any violation. The short form is part of `make test`. Full disks need root, to mount small
# file systems.
chaos: $(TESTED)
	$(BIN)/python -m tests.chaos --kills 1000 $(CHAOS)

# Train the default model again: about five core hours on the machine of 2026-11-28 (docs/model.md).
# docs/training.md describes the layout of DATA.
train: $(TESTED)
	$(BIN)/pleura train --recipe default --data $(DATA) --out runs/default

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing torch and the other libraries: this takes some minutes and prints nothing."
	$(BIN)/$(PIP_INSTALL) $(TORCH)
	$(BIN)/$(PIP_INSTALL) -c constraints.txt -e .
	touch $@

$(TESTED): $(INSTALLED)
	$(BIN)/$(PIP_INSTALL) -c constraints.txt -e '.[test]'
# Compile the modules that the tests import, because otherwise each test process would do so.
	-$(BIN)/pytest --collect-only > /dev/null
	touch $@

# A Debian package with its own virtual environment under /opt/pleura, for this machine's Debian.
# Another torch: make deb TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130"
deb: $(TESTED)
	rm -f dist/pleura-*.whl
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .
	PIP=$(BIN)/pip TORCH="$(TORCH)" deploy/deb/build dist/pleura-*.whl dist

# A container image, built by Podman or Buildah. It needs a registry for its base image
# (docs/packages.md). It is in Docker's format, because the OCI format has no health check.
# Another base: make image IMAGE="--build-arg BASE=localhost/debian-python"
# Where crun may not write to cgroups: make image PODMAN="podman --runtime runc"
PODMAN := podman
image:
	$(PODMAN) build --format docker $(IMAGE) -f deploy/oci/Containerfile -t pleura:cpu .

# pip's report of what it would install for a node here; requirements, sbom and audit read it. With
# EXTRAS also for these extras. What the Debian package holds: make sbom EXTRAS=oidc,postgresql
REPORT := dist/pip-report.json
report: $(INSTALLED)
	mkdir -p dist
	$(BIN)/pip install --disable-pip-version-check --quiet --dry-run --ignore-installed \
	    --report $(REPORT) -c constraints.txt $(TORCH) '.$(if $(EXTRAS),[$(EXTRAS)])'

requirements: report
	$(BIN)/python -m tools.release requirements $(REPORT) > dist/requirements.txt

sbom: report
	$(BIN)/python -m tools.release sbom $(REPORT) > dist/pleura.cdx.json

# Known vulnerabilities in a node's requirements, from PyPI's advisory service (on the internet).
# Strict: without it a distribution that the service does not know, or a service that cannot be
# reached, counts as "No known vulnerabilities found".
audit: report
	$(BIN)/python -m tools.release audited $(REPORT) > dist/audited.txt
	$(BIN)/$(PIP_INSTALL) pip-audit
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r dist/audited.txt

licences: $(TESTED)
	$(BIN)/python -m tools.licences

clean:
	rm -rf $(VENV) demo runs build dist site
