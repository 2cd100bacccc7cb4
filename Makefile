# `make help` lists the targets. CI calls the same targets (.ci/run, .github/workflows/ci.yml).
.DEFAULT_GOAL := help
.PHONY: docs messages help env demo test test-fast reference lint format types bench bench-gpu bench-multi bench-nodes cuda-image quality torture long dist install-check audit transformers4 two-at-once clean
PY := .venv/bin/python
CODE := launcher train zlaunch tests docker docs

help: ## print this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

env: ## make .venv with everything in it; do nothing if it is current
	@sh docker/install_env.sh .venv

demo: env ## train a small real model on the bundled records, and show what it learned
	.venv/bin/zlaunch local templates/demo/job.yaml

test: env ## run the whole test suite in three processes
	$(PY) -m pytest -n 3 --no-loadscope-reorder $(PYTEST_ARGS)

test-fast: env ## run the tests that need neither torch nor a test bed
	$(PY) -m pytest -n 2 --no-loadscope-reorder -m "not slurm and not ssh and not container and not browser and not train" $(PYTEST_ARGS)

reference: env ## write what is made from the schema of a job: the pages of its keys and of the commands, the JSON Schema
	PYTHONPATH=. $(PY) docs/generate.py

messages: env ## bring the catalogues of Chinese up to date with the source, and say how many texts have no Chinese yet
	PYTHONPATH=. $(PY) docs/messages.py

docs: ## build the pages as a site in both languages, in an environment of its own; broken links fail
	test -x .docs-env/bin/mkdocs || python3 -m venv .docs-env
	.docs-env/bin/pip install -q mkdocs-material==9.8.2 mkdocs-static-i18n==1.3.1 jieba==0.42.1
	NO_MKDOCS_2_WARNING=1 .docs-env/bin/mkdocs build -q -d site

lint: env ## check rules and format with ruff, and the Dockerfile with hadolint
	$(PY) -m ruff check $(CODE)
	$(PY) -m ruff format --check $(CODE)
	.venv/bin/hadolint docker/Dockerfile

format: env ## sort the imports and format the code
	$(PY) -m ruff check --select I --fix $(CODE)
	$(PY) -m ruff format $(CODE)

types: env ## check types with mypy --strict
	$(PY) -m mypy

bench: env ## measure start-up and launch overhead against the alternatives
	$(PY) -m tests.bench

bench-gpu: ## on a GPU: measure the speed of every workload and of the alternatives, and compare memory with its prediction
	$(or $(wildcard .venv/bin/python),python3) -m tests.bench.gpu --out bench-gpu

bench-multi: ## on several GPUs: check equal losses and faults, measure scaling; BENCH_ARGS="--device cpu" tries it
	$(or $(wildcard .venv/bin/python),python3) -m tests.bench.multi $(BENCH_ARGS)

bench-nodes: ## over several hosts, simulated on this machine's GPUs or real: losses, scaling, faults, Slurm; BENCH_ARGS="--device cpu" tries it
	$(or $(wildcard .venv/bin/python),python3) -m tests.bench.nodes $(BENCH_ARGS)

cuda-image: env ## build the CUDA image on a Debian from its archive, without a registry, and train in it on the CPU; VARIANT=cuda12
	PYTHON=$(PY) bash tests/testbed/cuda-image.sh $(or $(VARIANT),cuda)

quality: env ## compare our training with TRL's on a real model; QUALITY_ARGS="--records 400 --seeds 1" for a CPU
	$(PY) -m tests.bench.quality $(QUALITY_ARGS)

torture: env ## damage and interrupt everything, by seed, for hours; TORTURE_ARGS="--seed 2 checkpoints" for a part
	$(PY) -m tests.torture $(TORTURE_ARGS)
	$(if $(TORTURE_ARGS),,ZLAUNCH_TORTURE=1 $(PY) -m pytest -n 0 tests/ssh/test_hostile.py)

long: env ## run whole what the suite runs in part: every pair of training settings, ranks killed at every moment of a save
	ZLAUNCH_LONG=1 $(PY) -m pytest -n 0 -m long $(PYTEST_ARGS)

dist: ## build the wheel and the sdist into dist/
	test -x .dist/bin/hatchling || { python3 -m venv .dist && \
		.dist/bin/pip install -q "$$(sed -n 's/^\(hatchling==[^ ]*\).*/\1/p' docker/requirements/dev.txt)"; }
	rm -rf dist
	.dist/bin/hatchling build -d dist

install-check: dist ## install both in clean environments and use them; PYTHONS="python3.10 python3.14" for these
	bash tests/installed.sh dist $(or $(PYTHONS),python3)

audit: ## check the locks with hashes for known advisories; needs a network that reaches PyPI or OSV
	test -x .audit/bin/pip-audit || { python3 -m venv .audit && .audit/bin/pip install -q pip-audit; }
	for lock in build cpu cuda cuda12 ui dev; do \
		.audit/bin/pip-audit --disable-pip --require-hashes -r docker/requirements/$$lock.txt || exit 1; \
	done

transformers4: env ## load every kind of export with transformers 4.57, in an environment of its own
	test -x .transformers4/bin/python || python3 -m venv .transformers4
	.transformers4/bin/pip install -q "torch==$$($(PY) -c 'import torch; print(torch.__version__.partition("+")[0])')" \
		"transformers==4.57.*" "peft==$$($(PY) -c 'import peft; print(peft.__version__)')"
	TRANSFORMERS4=$(CURDIR)/.transformers4/bin/python $(PY) -m pytest -n 0 tests/train/exports/test_portable.py

.hardware-keys/sk-dummy.so: tests/testbed/software-key.sh
	bash $< $(@D)

hardware-keys: env .hardware-keys/sk-dummy.so ## log in with hardware keys, for which OpenSSH's key in software stands; needs root and apt
	ZLAUNCH_SK_PROVIDER=$(CURDIR)/.hardware-keys/sk-dummy.so $(PY) -m pytest -n 0 tests/ssh/test_hardware_keys.py

two-at-once: env ## resume, cancel, pull and ask about one run at once, in many seeded orders, here, over SSH and on Slurm
	ZLAUNCH_INTERLEAVINGS=$(or $(COUNT),24) $(PY) -m pytest -n 0 -k "whatever_the_order" tests/launcher/lifecycle tests/ssh tests/slurm

clean: ## remove the environment and all caches; keep runs
	rm -rf .venv .dist .transformers4 .audit .hardware-keys .mypy_cache .pytest_cache .ruff_cache build dist unsloth_compiled_cache
	find launcher train tests -name __pycache__ -type d -prune -exec rm -rf {} +
