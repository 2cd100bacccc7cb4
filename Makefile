# `make help` lists the targets. CI calls these same targets (.ci/run).
.DEFAULT_GOAL := help
.PHONY: help env demo test test-fast lint format types bench bench-gpu bench-multi quality clean
PY := .venv/bin/python
CODE := launcher train tests docker

help: ## print this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

env: ## make .venv with everything in it; does nothing when it is current
	@sh docker/install_env.sh .venv

demo: env ## train a small real model on the records that ship, and show what it learned
	.venv/bin/zlaunch local templates/demo/job.yaml

test: env ## the whole test suite, in two processes
	$(PY) -m pytest -n 2 --no-loadscope-reorder $(PYTEST_ARGS)

test-fast: env ## the tests that need neither torch nor a test bed
	$(PY) -m pytest -n 2 --no-loadscope-reorder -m "not slurm and not ssh and not container and not train" $(PYTEST_ARGS)

lint: env ## ruff (rules and format), and hadolint on the Dockerfile
	$(PY) -m ruff check $(CODE)
	$(PY) -m ruff format --check $(CODE)
	.venv/bin/hadolint docker/Dockerfile

format: env ## sort the imports and format the code
	$(PY) -m ruff check --select I --fix $(CODE)
	$(PY) -m ruff format $(CODE)

types: env ## mypy, strict
	$(PY) -m mypy

bench: env ## start-up times and launch overhead, side by side
	$(PY) -m tests.bench

bench-gpu: ## on a GPU machine: speed of every workload beside the alternatives, measured beside predicted memory
	$(or $(wildcard .venv/bin/python),python3) -m tests.bench.gpu --out bench-gpu

bench-multi: ## on a machine with several GPUs: equal losses, faults, speed and scaling; BENCH_ARGS="--device cpu" tries it
	$(or $(wildcard .venv/bin/python),python3) -m tests.bench.multi $(BENCH_ARGS)

quality: env ## our training beside TRL's on a real model; QUALITY_ARGS="--records 400 --seeds 1" on a CPU
	$(PY) -m tests.bench.quality $(QUALITY_ARGS)

clean: ## remove the environment and all caches; runs are kept
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist unsloth_compiled_cache
	find launcher train tests -name __pycache__ -type d -prune -exec rm -rf {} +
