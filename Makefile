# Everything people, hooks and CI run. `make demo` and `make test` set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-full-size lint types layers fmt changelog sizes quality bench-sampler bench-generate bench-export ci clean

demo: $(INSTALLED)
	$(BIN)/triptych demo

# One thread a process: on networks this small several only wait for each other. Whole files go to
# a process, in the order of tests/conftest.py, so that what a file's tests share is made once.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# The U-Net at its published size, exported and compared with PyTorch: 20 GB of disk, minutes.
test-full-size: $(INSTALLED)
	$(BIN)/pytest -m full_size tests/full_size

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/typos

types: $(INSTALLED)
	$(BIN)/mypy

layers: $(INSTALLED)
	$(BIN)/lint-imports

fmt: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

changelog: $(INSTALLED)
	$(BIN)/towncrier build --draft

sizes:
	@git ls-files 'src/*.py' | xargs wc -l | sort -n | tail -12

# What every format and precision costs in pictures, on the trained model that comes along.
quality: $(INSTALLED)
	$(BIN)/python benchmarks/quality.py --sheet docs/images/quality.png

# What the sampler costs beside the engine, step by step.
bench-sampler: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/sampler_step.py

# What making a dataset spares, and costs.
bench-generate: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/generate.py

# What exporting a full-size model takes, beside optimum-cli and coremltools: an hour, 40 GB of disk.
bench-export: $(INSTALLED)
	$(BIN)/python benchmarks/export.py

ci: lint types layers test

clean:
	rm -rf $(VENV) demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@
