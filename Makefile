# make train    a small ViT on bundled real digits
# make test     the tests, with Paddle 3
# Both make .venv first. `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
VENV26 ?= .venv-paddle26
VENV_PARITY ?= .venv-parity
VENV_GPU_WHEEL ?= .venv-gpu-wheel
# cpu, gpu, xpu, npu, or pretend for the accelerator of tests/accelerator
PLSC_TEST_DEVICE ?=
# the package index of Paddle for gpu, xpu and npu, as its installation page shows it for your machine
PADDLE_INDEX ?=
RUN ?= output/digits-$(shell date +%Y%m%d-%H%M%S)
# one process for each two cores (docs/performance.md); a power of two, so that it divides the batch, and at most 8
PROCESSES ?= $(shell $(PYTHON) -c "import os; print(1 << min(3, max(0, len(os.sched_getaffinity(0)).bit_length() - 2)))")
PYTEST_FLAGS ?=
# two processes with half of the tests each, so that fixtures of a file are made once; who is done takes over the rest
TWO = -n 2 --dist worksteal

# gpu, xpu and npu have a Paddle of their own, and so an environment
VENV_DEVICE = $(if $(filter cpu pretend,$(PLSC_TEST_DEVICE)),$(VENV),.venv-$(PLSC_TEST_DEVICE))

.PHONY: help train test test-long test-storm test-quick test-amp test-device test-paddle26 test-gpu-wheel test-parity lint format docs hooks benchmark clean

help:  ## show this list
	@echo "usage: make TARGET, with the variables PYTHON (for the environments), PYTEST_FLAGS, RUN, PROCESSES,"
	@echo "       and for test-device PLSC_TEST_DEVICE and PADDLE_INDEX"
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/ready: EXTRAS = cpu,dev
$(VENV26)/ready: EXTRAS = paddle26,test
$(VENV_PARITY)/ready: EXTRAS = cpu,test,parity
$(VENV_GPU_WHEEL)/ready: EXTRAS = paddle26-gpu,test
# later ones need protobuf 4, which Paddle 2.6 cannot use: without this line pip downloads seven of them to learn it
$(VENV26)/ready $(VENV_GPU_WHEEL)/ready: BOUNDS = 'onnxruntime<1.27'
.venv-$(PLSC_TEST_DEVICE)/ready: EXTRAS = $(PLSC_TEST_DEVICE),test
.venv-$(PLSC_TEST_DEVICE)/ready: HINT = || { echo "Paddle 3 for $(PLSC_TEST_DEVICE) is on Paddle's own package index alone: \
	PADDLE_INDEX=… names it, see requirements-$(PLSC_TEST_DEVICE).txt" >&2; exit 1; }
$(sort $(addsuffix /ready,$(VENV) $(VENV26) $(VENV_PARITY) $(VENV_GPU_WHEEL) $(VENV_DEVICE))): pyproject.toml tools/check_system.py
	@$(PYTHON) tools/check_system.py
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(addprefix --extra-index-url ,$(PADDLE_INDEX)) -e '.[$(EXTRAS)]' $(BOUNDS) $(HINT)
	@touch $@

LAUNCH = -m paddle.distributed.launch --log_level WARNING --log_dir $(RUN)/launch --nproc_per_node $(PROCESSES)

train: $(VENV)/ready  ## train a small ViT on handwritten digits, one process for each two cores
	PYTHONWARNINGS="ignore:No ccache found" $(VENV)/bin/python $(if $(filter-out 1,$(PROCESSES)),$(LAUNCH)) \
	    tools/train.py -c configs/digits/digits.yaml -o Global.output_dir=$(RUN)

test: $(VENV)/ready  ## run the tests, two at a time
	$(VENV)/bin/python -m pytest $(TWO) -m "not long and not storm" $(PYTEST_FLAGS)

test-long: $(VENV)/ready  ## run the tests that take more than half a minute each: PLSC's recipes, CIFAR-10, the notebook
	$(VENV)/bin/python -m pytest $(TWO) -m "long and not storm" $(PYTEST_FLAGS)

test-storm: $(VENV)/ready  ## run the storms: many kills and stops at random moments, one at a time
	$(VENV)/bin/python -m pytest -s -m storm $(PYTEST_FLAGS)

test-quick: $(VENV)/ready  ## run the tests that take a moment each and start no processes
	$(VENV)/bin/python -m pytest $(TWO) -m "not slow and not storm and not distributed and not shared" $(PYTEST_FLAGS)

test-amp: $(VENV)/ready  ## run half precision and two devices on a pretend accelerator, built with g++
	PLSC_TEST_DEVICE=pretend $(VENV)/bin/python tests/accelerator/build.py \
	    $(VENV)/bin/python -m pytest -n 2 --dist loadfile tests/amp tests/device $(PYTEST_FLAGS)

ifneq ($(PLSC_TEST_DEVICE),)
test-device: $(VENV_DEVICE)/ready
endif
test-device:  ## run training, resume, parity and export on PLSC_TEST_DEVICE, which is cpu, gpu, xpu, npu or pretend
	@test -n "$(PLSC_TEST_DEVICE)" || { echo "usage: PLSC_TEST_DEVICE=gpu PADDLE_INDEX=… make test-device" >&2; exit 2; }
	PLSC_TEST_DEVICE=$(PLSC_TEST_DEVICE) $(if $(filter pretend,$(PLSC_TEST_DEVICE)),$(VENV)/bin/python tests/accelerator/build.py) \
	    $(VENV_DEVICE)/bin/python -m pytest tests/device $(PYTEST_FLAGS)

test-paddle26: $(VENV26)/ready  ## run the smoke tests on Paddle 2.6.2, in an environment of its own
	$(VENV26)/bin/python -m pytest -m smoke $(PYTEST_FLAGS)

test-gpu-wheel: $(VENV_GPU_WHEEL)/ready  ## run the tests of paddlepaddle-gpu on a machine without a GPU (a download of 760 MB)
	$(VENV_GPU_WHEEL)/bin/python -m pytest tests/test_gpu_wheel.py $(PYTEST_FLAGS)

test-parity: $(VENV_PARITY)/ready  ## compare with torch, timm and transformers (a large download)
	$(VENV_PARITY)/bin/python -m pytest tests/parity $(PYTEST_FLAGS)

lint: $(VENV)/ready  ## check style, types, workflows and metadata
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/zizmor --quiet --offline --pedantic .
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(VENV)/bin/pre-commit validate-config
	$(VENV)/bin/hadolint docker/*.Dockerfile

format: $(VENV)/ready  ## correct style where a program can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(VENV)/ready  ## write the generated pages of docs/ again: cli, api, recipes
	$(VENV)/bin/python tools/generate_cli_docs.py
	$(VENV)/bin/python tools/generate_api_docs.py
	$(VENV)/bin/python tools/generate_recipes_docs.py

hooks: $(VENV)/ready  ## run the checks of .pre-commit-config.yaml before every commit in this clone
	$(VENV)/bin/pre-commit install

benchmark: $(VENV)/ready  ## time a training step against a bare Paddle loop
	$(VENV)/bin/python benchmarks/train_step.py

clean:  ## remove environments, caches and output
	rm -rf $(VENV) $(VENV26) $(VENV_PARITY) $(VENV_GPU_WHEEL) .venv-gpu .venv-xpu .venv-npu output build dist *.egg-info
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis
