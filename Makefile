# Python 3.11 and make are all that is needed: every target installs what it uses into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test test-slow test-container check fmt image image-cpu lock clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	@echo "installing the job and its development tools into .venv: 2 GB, some minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

setup: .venv/installed  ## install everything into .venv

demo: setup  ## train a small LoRA on the CPU, as a chain of two tasks: 5 to 20 minutes
	$(BIN)/python examples/chain.py --task examples/demo/task.json --output out/demo -- --device cpu --cache-dir out/cache

test: setup  ## the tests
	$(BIN)/python -m pytest

test-slow: setup  ## the tests that take long
	$(BIN)/python -m pytest -m slow

test-container: setup  ## the tests that run containers of the CPU image
	$(BIN)/python -m pytest -m container tests/container

image:  ## the image for a GPU, sd-lora-task
	tools/image.sh cuda

image-cpu:  ## the image for a CPU, sd-lora-task:cpu
	tools/image.sh cpu

lock:  ## requirements-common.txt and -cuda.txt anew, from requirements.txt
	tools/lock.sh

check: setup  ## linters and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

fmt: setup  ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what make made, but for out/, which may hold trainings
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis
