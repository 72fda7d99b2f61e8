# Targets make their own virtual environment; PYTHON picks the interpreter that it starts from.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The demo's data: digits, which ship with a package, or CIFAR10=path/to/test/images.
CIFAR10 ?=
DEMO := $(if $(CIFAR10),demo-cifar10,demo)

# Of the paper's tables: which (table01 .. figure5), and at which scale (paper or cpu).
TABLE ?= table07
SCALE ?= cpu
WORKERS ?= 1
NETWORKS := $(if $(CLASSIFIER),--classifier $(CLASSIFIER)) $(if $(DENOISER),--denoiser $(DENOISER))

# The site has an environment of its own, as its libraries need what torchattacks forbids.
DOCS ?= .venv-docs

.PHONY: demo docs gpu paper-table test test-avx2 test-roots test-oldest lint clean

demo: $(VENV)/demo.stamp  ## attack the bare and the defended classifier; about 3 minutes
	mkdir -p runs
	sed 's|path/to/cifar10|$(CIFAR10)|' examples/$(DEMO).toml > runs/$(DEMO).toml
	$(BIN)/scoreopt evaluate runs/$(DEMO).toml --out runs/$(DEMO)

paper-table: $(VENV)/dev.stamp  ## TABLE=table01 SCALE=cpu CIFAR10=path: benchmarks/README.md
	$(BIN)/python -m benchmarks.paper.run $(TABLE) $(CIFAR10) --scale $(SCALE) \
		--workers $(WORKERS) $(NETWORKS)

gpu: $(VENV)/dev.stamp  ## what only a CUDA device can show, to benchmarks/results/gpu.json; 8 minutes
	$(BIN)/python -m benchmarks.speed.gpu

# A file's tests stay in one process, as they share what is made once.
EXTRA ?= dev
test: $(VENV)/$(EXTRA).stamp  ## the default tests and the doctests; under 10 minutes
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

# The instructions of a CPU without AVX-512, on one that has it, which changes nothing on one without;
# in one process, whose tensors are computed by as many threads as there are cores.
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2

test-avx2: $(VENV)/dev.stamp  ## the default tests as on a CPU without AVX-512; some 10 minutes
	$(AVX2) $(BIN)/python -m pytest

# Left out: what compares with another process, whose roots do not err, or compiles or profiles.
ELSEWHERE := workers_and or two_workers or is_killed or one_cell_alone or ctrl_c or without_a_break
ELSEWHERE += or every_part_is or a_read_of

test-roots: $(VENV)/dev.stamp  ## the default tests as where a library's square roots err in the last bit
	ERRING_ROOTS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile \
		-k "not ($(ELSEWHERE))"

test-oldest:  ## the default tests on the oldest releases that pyproject.toml allows
	PIP_CONSTRAINT=$(CURDIR)/tests/oldest.txt $(MAKE) test VENV=.venv-oldest EXTRA=test

lint: $(VENV)/dev.stamp  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(DOCS)/docs.stamp  ## the site, to build/site/index.html; a broken link ends it; a minute
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet

$(DOCS)/docs.stamp: docs/site/requirements.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --upgrade pip
	$(DOCS)/bin/python -m pip install --quiet --requirement $<
	touch $@

$(VENV)/%.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) .venv-oldest $(DOCS) build runs
