# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := train,export,serve,cpu,bench

.PHONY: quickstart test lint format bench-cifar10 bench-step objectives results digits-bundle \
	clean help

help:
	@echo "make quickstart     train, export, benchmark and serve digits (minutes on two cores)"
	@echo "make test           lint, types and the default test suite"
	@echo "make bench-cifar10  latency of the 55.9M CIFAR-10 network against PyTorch eager"
	@echo "make bench-step     what an optimiser step costs against flow matching (10 minutes)"
	@echo "make objectives     train digits with every objective, three seeds each (40 minutes)"
	@echo "make results         measure anew what the README shows"
	@echo "make digits-bundle  train the embedded bundle anew"

quickstart: $(VENV)/.installed
	$(BIN)/mmf quickstart

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# the four folders are one package once installed; mypy sees them so through links
	@rm -rf .typing && mkdir -p .typing/mmf_deploy
	@for f in mmf_deploy/* training export serve; do \
		ln -sfn "$(CURDIR)/$$f" ".typing/mmf_deploy/$$(basename $$f)"; done
	cd .typing && ../$(BIN)/mypy --config-file ../pyproject.toml -p mmf_deploy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-cifar10: $(VENV)/.installed
	$(BIN)/mmf train cifar10-random --out runs/cifar10-random
	$(BIN)/mmf export runs/cifar10-random --out bundles/cifar10-random --force
	$(BIN)/mmf bench bundles/cifar10-random --baseline runs/cifar10-random \
		--batches 1 --threads $$(nproc) --seconds 60 --out runs/cifar10-random/bench

bench-step: $(VENV)/.installed
	$(BIN)/mmf bench-step --seconds 240 --device cpu --out runs/bench-step
	cp runs/bench-step/bench-step.json benchmarks/results/bench-step-cpu.json

objectives: $(VENV)/.installed
	$(BIN)/python benchmarks/objectives.py

# measure anew what the README shows
results: bench-cifar10
	rm -rf runs/quickstart
	$(BIN)/mmf quickstart
	mkdir -p benchmarks/results/cifar10-random-cpu
	cp runs/cifar10-random/bench/bench.json runs/cifar10-random/bench/bench.png \
		benchmarks/results/cifar10-random-cpu/
	cp runs/quickstart/quickstart.json benchmarks/results/quickstart-cpu.json
	$(BIN)/python benchmarks/render.py

digits-bundle: $(VENV)/.installed
	$(BIN)/mmf train digits --out runs/digits
	$(BIN)/mmf export runs/digits --out mmf_deploy/assets/digits --force

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[$(EXTRAS),dev]"
	@touch $@

clean:
	rm -rf .typing .pytest_cache .mypy_cache .ruff_cache build *.egg-info
