# Two commands for a newcomer: `make demo` and `make test`. Everything else is for people working on calmctl.
# Nothing is installed outside .venv; pip only brings uv, and uv installs the locked dependencies. So `calmctl` is a
# command after `source .venv/bin/activate`, which README, `make install` and the demo's last lines say.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test gpu check lint types site wheel release install lock clean

demo: $(INSTALLED)
	$(BIN)/calmctl demo

# Two processes with one thread each: two threads each on two cores would wait for one another. A file goes to one of
# them, because what its tests share (a trained run, a world) is made once a process; the longest files come first.
# Bytecode is kept, also where the shell says otherwise: every process that a test starts would compile all it imports.
test: $(INSTALLED)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=10 --durations-min=1

# Where a CUDA device is: the tests marked gpu and the GPU's benchmarks, into the folder OUT, in about five minutes.
gpu: $(INSTALLED)
	$(BIN)/python benchmarks/gpu.py $(or $(OUT),gpu)

check: lint types test

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

# The documentation as a site of its own, in build/site. Its packages have a lock of their own: nobody else needs them.
site: $(INSTALLED)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements-docs.lock
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

# What a release consists of, built and tried where no checkout is; nothing is uploaded.
release: check site
	$(MAKE) wheel

wheel: $(INSTALLED)
	$(BIN)/python scripts/release.py

install: $(INSTALLED)
	@echo "installed; then: source $(BIN)/activate && calmctl --help"

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "calmctl needs Python 3.11 or newer; try: make $(or $(MAKECMDGOALS),demo) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

# The lock covers Linux, macOS and Windows, Python 3.11 and newer, with a hash for every file and no addresses. The extras
# hf, mcp, mteb and tracking are not in it: they are as large as all the others together, and their tests skip without them.
lock:
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra index --extra cluster --extra report \
		--extra parquet --extra serve --extra syntax --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade -o requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra docs --constraint requirements.lock --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --upgrade -o requirements-docs.lock

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
