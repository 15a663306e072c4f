# make ask    answer a question about the sample clip, from nothing but Python and make
# make test   lint, types and every test, in the same environment
# make bench  the tables of benchmarks/
# make clean  remove the environment and what was built

PYTHON ?= python3
# A Linux machine without an NVIDIA driver needs the 200 MB CPU build of torch, not gigabytes of CUDA libraries.
# Asked only when torch is installed; another build is yours to name: make ask TORCH_INDEX="--index-url ..."
CPU_INDEX = https://download.pytorch.org/whl/cpu
TORCH_INDEX ?= $(shell [ "$$(uname -s)" != Linux ] || command -v nvidia-smi >/dev/null 2>&1 || \
	$(PYTHON) -c "import urllib.request; urllib.request.urlopen('$(CPU_INDEX)/torch/', timeout=5); print('--extra-index-url $(CPU_INDEX)')" 2>/dev/null)

BIN = .venv/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
CLIP = vidllm/builtin/sample/sample.mp4
QUESTION = what happens at 0:30?

.PHONY: ask test bench clean

ask: .venv/installed
	@echo '$$ vidllm ask $(CLIP) "$(QUESTION)"'
	@$(BIN)/vidllm ask $(CLIP) "$(QUESTION)"

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile

bench: .venv/installed-dev
	for table in $(filter-out $(addprefix benchmarks/, report.py pillow.py caption_peers.py), $(wildcard benchmarks/*.py)); do $(BIN)/python $$table || exit 1; done

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "vidllm needs Python 3.11 or newer, and $(PYTHON) is older: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing into .venv: about a gigabyte the first time, most of it torch."
	$(PIP) $(TORCH_INDEX) torch
	$(PIP) -e .
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) -e '.[dev,bench]'
	@touch $@
