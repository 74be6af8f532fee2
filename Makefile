# Python 3.11 and make are all that is needed: every target installs what it uses into .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
# A process for each core; the tests of a file stay together, since they share what is built for them. In the order of
# the folders: by pytest-xdist's own order files of few tests come last, which are whole jobs, and one core would idle.
PARALLEL := -n logical --dist loadfile --no-loadscope-reorder

# The rooms that need no torch to train, what holds for the whole repository, and one training through the entry point.
QUICK := $(addprefix tests/unit/,core task results data commands) $(wildcard tests/test_*.py) tests/tools tests/integration/test_one_job.py

.PHONY: help setup demo demo-video test test-quick test-slow test-container gpu gpu-wheels check schema fmt image image-cpu lock clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

# torch's CPU build, where pip's own sources or PyTorch's index have one for this machine; else what pip's index offers, whose CUDA
# libraries then come with requirements.txt. It is installed by itself, as no other package should be asked of that index.
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

.venv/job: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	@echo "installing the job into .venv: 0.3 GB to download, 1.5 GB on disk, 1 to 5 minutes"
	$(PYTHON) -m venv .venv
	@torch="$$(grep ^torch== requirements.txt)"; set -x; $(PIP) --no-deps "$$torch+cpu" 2>/dev/null \
		|| $(PIP) --no-deps --extra-index-url $(TORCH_CPU_INDEX) "$$torch"
	$(PIP) -r requirements.txt
	@touch $@

.venv/installed: .venv/job requirements-compare.txt requirements-dev.txt requirements-tagger.txt requirements-trackers.txt
	@echo "installing linters and test tools into .venv: 0.1 GB to download, 0.4 GB on disk, about a minute"
	$(PIP) -r requirements-dev.txt
	$(PIP) --no-deps -r requirements-tagger.txt -r requirements-trackers.txt
	@touch $@

setup: .venv/installed  ## install everything into .venv

demo: .venv/job  ## train a small LoRA on the CPU, as a chain of two tasks: 4 minutes, longer on a busy machine
	@echo "training a LoRA on 192 drawings of emoji, in two tasks of 75 steps: 3 minutes on an idle core, longer on a busy one"
	$(BIN)/python entrypoint.py chain --task examples/demo/task.json --output out/demo -- --device cpu --cache-dir out/cache
	@printf '\n%s\n\n' "Look at out/demo/001/report.html. To draw with the LoRA: $(BIN)/python examples/demo/draw.py, which is"
	@cat examples/demo/draw.py

demo-video: .venv/job  ## the same for video: make a tiny base model, train it, then a LoRA for it
	@echo "making clips of moving emoji and a tiny base model, and training it and a LoRA for it: 3 minutes on an idle core"
	rm -rf out/demo-video
	$(BIN)/python examples/demo-video/make_base.py out/demo-video
	$(BIN)/python entrypoint.py --task examples/demo-video/pretrain.json --output-dir out/demo-video/pretrained --device cpu --cache-dir out/cache
	$(BIN)/python entrypoint.py --task examples/demo-video/task.json --output-dir out/demo-video/lora --device cpu --cache-dir out/cache
	@printf '\n%s\n' "Look at out/demo-video/lora/report.html: clips with and without the LoRA, and the curve of the held-out loss."

test: setup  ## the tests, on all cores: 11 minutes on two idle ones
	$(BIN)/python -m pytest $(PARALLEL)

test-quick: setup  ## a selection, with one training: 100 seconds on two idle cores
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not long and not gpu and not container" $(QUICK)

test-slow: setup  ## the tests that take long
	$(BIN)/python -m pytest $(PARALLEL) -m slow

test-container: setup  ## the tests that run containers of the CPU image
	$(BIN)/python -m pytest -m container tests/container

# With a torch that has CUDA, which .venv's may not be. No network: what that Python lacks is in GPU_WHEELS, if that is there.
GPU_PYTHON ?= $(PYTHON)
GPU_WHEELS ?= build/gpu-wheels
GPU_PYTHON_VERSION ?= 3.12
gpu:  ## tests and measurements on a GPU, with GPU_PYTHON's torch: at most 9 minutes; results in out/gpu
	$(GPU_PYTHON) -m benchmarks.gpu $(if $(wildcard $(GPU_WHEELS)),--wheels $(GPU_WHEELS)) $(GPU_FLAGS)

gpu-wheels:  ## for make gpu without network: wheels of the job's packages but for torch, 33 MB, for GPU_PYTHON_VERSION
	tools/gpu_wheels.sh $(GPU_PYTHON_VERSION) $(GPU_WHEELS)

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

schema: setup  ## schema/task.schema.json and the tables of docs/task.md, from the task's keys in engine/task
	$(BIN)/python -m tools.task_docs

fmt: setup  ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what make made, but for out/, which may hold trainings
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis
