# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := train,export,serve,client,cpu,openvino,bench,demo

.PHONY: quickstart test test-ray demo web screenshots bench-demo check-image lint format bench-serve bench-cifar10 bench-cifar10-gpu bench-digits export-study bench-step objectives results digits-bundle \
	clean help

help:
	@echo "make quickstart     train, export, benchmark and serve digits (minutes on two cores)"
	@echo "make test           lint, types and the default test suite"
	@echo "make demo           open the demo on http://127.0.0.1:7860"
	@echo "make web            write the page that generates digits in a browser to bundles/digits-web"
	@echo "make screenshots    the pictures of both in docs/images, taken by their tests in Chromium"
	@echo "make test-ray       the tests with real Ray: two replicas, one killed under load"
	@echo "make check-image    lint the Dockerfile, run its install lines and what they install"
	@echo "make bench-serve    the service against its engine, under overload, and against LitServe"
	@echo "make bench-demo     clicks in the demo, and the browser page from load to first image"
	@echo "make bench-cifar10  latency of the 55.9M CIFAR-10 network against PyTorch (10 minutes)"
	@echo "make bench-digits   latency of every variant of the digits network"
	@echo "make bench-cifar10-gpu  the same on an NVIDIA GPU, batch 1 to 256"
	@echo "make export-study   forms of its graph, and int8 layer by layer (20 minutes)"
	@echo "make bench-step     what an optimiser step costs against flow matching (10 minutes)"
	@echo "make objectives     train digits with every objective, three seeds each (40 minutes)"
	@echo "make results         measure anew what the README shows"
	@echo "make digits-bundle  train the embedded bundle anew"

quickstart: $(VENV)/.installed
	$(BIN)/mmf quickstart

test: $(VENV)/.installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

demo: $(VENV)/.installed
	$(BIN)/mmf demo

web: $(VENV)/.installed
	$(BIN)/mmf train digits --out runs/digits
	$(BIN)/mmf export runs/digits --out bundles/digits-web --force \
		--target web --precision fp16 --steps 1,2,4

screenshots: $(VENV)/.installed-dev
	MMF_REQUIRE_BROWSER=1 MMF_SCREENSHOTS=docs/images $(BIN)/python -m pytest tests/browser \
		-k screenshot

bench-demo: $(VENV)/.installed-dev web
	$(BIN)/python benchmarks/demo_latency.py
	$(BIN)/python benchmarks/web_page.py bundles/digits-web
	$(BIN)/python benchmarks/render.py

check-image: $(VENV)/.installed-dev
	PATH="$(CURDIR)/$(BIN):$$PATH" deploy/check_image.sh

test-ray: $(VENV)/.installed-ray
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/serve/test_ray.py -m ray

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
	$(BIN)/mmf export runs/cifar10-random --out bundles/cifar10-random --force \
		--target onnxruntime-cpu,openvino,plain --precision fp32,bf16,int8
	$(BIN)/mmf bench bundles/cifar10-random --baseline runs/cifar10-random --pytorch eager,compile,bf16 \
		--batches 1 --threads $$(nproc) --seconds 180 --out runs/cifar10-random/bench

# needs an NVIDIA GPU, and onnxruntime-gpu in place of onnxruntime
bench-cifar10-gpu: $(VENV)/.installed
	$(BIN)/mmf train cifar10-random --out runs/cifar10-random
	$(BIN)/mmf export runs/cifar10-random --out bundles/cifar10-random-gpu --force \
		--target onnxruntime-cuda --precision fp32,fp16
	$(BIN)/mmf bench bundles/cifar10-random-gpu --baseline runs/cifar10-random --device cuda \
		--pytorch eager,compile,channels_last,bf16,compile-bf16,cudagraph \
		--batches 1,8,64,256 --threads 1 --seconds 30 --out runs/cifar10-random/bench-gpu

FORMS := mmf export runs/cifar10-random --target onnxruntime-cpu,openvino --tune --samples 16
CURVE := mmf export runs/cifar10-random --target onnxruntime-cpu,openvino --precision int8 --curve

export-study: $(VENV)/.installed
	$(BIN)/mmf train cifar10-random --out runs/cifar10-random
	$(BIN)/$(FORMS) --out bundles/export-forms --force
	$(BIN)/python benchmarks/collect_export.py bundles/export-forms \
		benchmarks/results/export-forms-cpu.json "$(FORMS)"
	$(BIN)/$(CURVE) --out bundles/export-int8 --force
	$(BIN)/python benchmarks/collect_export.py bundles/export-int8 \
		benchmarks/results/export-int8-cpu.json "$(CURVE)"

bench-serve: $(VENV)/.installed
	$(BIN)/mmf train cifar10-random --out runs/cifar10-random
	$(BIN)/mmf export runs/cifar10-random --out bundles/cifar10-random-serve --force
	$(BIN)/python benchmarks/serve_targets.py --cifar bundles/cifar10-random-serve
	$(BIN)/python benchmarks/litserve/compare.py
	$(BIN)/python benchmarks/render.py

bench-digits: $(VENV)/.installed
	$(BIN)/mmf train digits --out runs/digits
	$(BIN)/mmf export runs/digits --out bundles/digits-all --force \
		--target onnxruntime-cpu,openvino,plain --precision fp32,bf16,int8
	$(BIN)/mmf bench bundles/digits-all --baseline runs/digits --batches 1 --threads 1 \
		--seconds 30 --out runs/digits/bench

bench-step: $(VENV)/.installed
	$(BIN)/mmf bench-step --seconds 240 --device cpu --out runs/bench-step
	cp runs/bench-step/bench-step.json benchmarks/results/bench-step-cpu.json

objectives: $(VENV)/.installed
	$(BIN)/python benchmarks/objectives.py

# measure anew what the README shows
results: bench-cifar10 bench-digits export-study
	rm -rf runs/quickstart
	$(BIN)/mmf quickstart
	mkdir -p benchmarks/results/cifar10-random-cpu benchmarks/results/digits-cpu
	cp runs/digits/bench/bench.json runs/digits/bench/bench.png benchmarks/results/digits-cpu/
	cp runs/cifar10-random/bench/bench.json runs/cifar10-random/bench/bench.png \
		benchmarks/results/cifar10-random-cpu/
	cp runs/quickstart/quickstart.json benchmarks/results/quickstart-cpu.json
	$(BIN)/python benchmarks/render.py

digits-bundle: $(VENV)/.installed
	$(BIN)/mmf train digits --out runs/digits
	$(BIN)/mmf export runs/digits --out mmf_deploy/assets/digits --force \
		--precision fp32,int8 --steps 1,2,4

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[$(EXTRAS),dev]"
	@touch $@

$(VENV)/.installed-ray: $(VENV)/.installed-dev
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[$(EXTRAS),dev,ray]"
	@touch $@

clean:
	rm -rf .typing .pytest_cache .mypy_cache .ruff_cache build *.egg-info
