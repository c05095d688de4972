# `make demo`, `make study` and `make test` need Python 3.11 or later, make, and a package index; nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo study test lint bench verify-real clean

demo: .venv/installed
	$(BIN)/python pipelines/tiny.py

# The same with more protocols and fine-tuning: 12 minutes instead of 3.
study: .venv/installed
	$(BIN)/python pipelines/tiny.py --whole

# Two processes, a file of tests each, whole studies first; one thread in each, since they share the
# cores.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python pipelines/benchmarks/all.py
	$(BIN)/python pipelines/benchmarks/protocols.py
	$(BIN)/python pipelines/benchmarks/finetune.py

# Published numbers, by real weights on real images: needs a network, ImageNet and hours.
verify-real: .venv/installed
	$(BIN)/python pipelines/verify_real.py

# One environment serves every target; it is made again only when what it holds changes.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

clean:
	rm -rf .venv data/features.zarr data/results data/results.zarr data/report.html
