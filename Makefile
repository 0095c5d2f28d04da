# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := train,export,serve,client,cpu,openvino,bench,demo

.PHONY: quickstart test test-ray demo web screenshots check-image lint format objectives \
	reproduce export-study results report digits-bundle clean help bench bench-cifar10 bench-cifar10-gpu \
	bench-digits bench-step bench-serve bench-demo bench-limit bench-peers bench-scale \
	bench-plan bench-repeat bench-load

help:
	@echo "make quickstart     train, export, benchmark and serve digits (minutes on two cores)"
	@echo "make test           lint, types and the default test suite"
	@echo "make demo           open the demo on http://127.0.0.1:7860"
	@echo "make web            write the page that generates digits in a browser to bundles/digits-web"
	@echo "make screenshots    the pictures of both in docs/images, taken by their tests in Chromium"
	@echo "make test-ray       the tests with real Ray: two replicas, one killed under load"
	@echo "make check-image    lint the Dockerfile, run its install lines and what they install"
	@echo "make bench-serve    the service against its engine, under overload, and against LitServe"
	@echo "make bench-load     latency of the service against its load, up to twice the capacity"
	@echo "make bench-demo     clicks in the demo, and the browser page from load to first image"
	@echo "make bench          latency of the embedded digits, against PyTorch and this machine's limit"
	@echo "make bench-cifar10  the same of the 55.9M CIFAR-10 network, with a profile (15 minutes)"
	@echo "make bench-digits   the same of every variant of the digits network"
	@echo "make bench-cifar10-gpu  the same on an NVIDIA GPU, batch 1 to 512"
	@echo "make bench-limit    is the floor right? a plain matrix product and a plain convolution"
	@echo "make bench-peers    other tools with the same weights, in turns with ours"
	@echo "make bench-scale    cost against batch, resolution and width"
	@echo "make bench-plan     how many replicas a rate needs; the queue simulated and measured"
	@echo "make bench-repeat   three runs of make bench: how well do its ratios repeat?"
	@echo "make report         every committed result as one HTML page"
	@echo "make export-study   forms of its graph, and int8 layer by layer (20 minutes)"
	@echo "make bench-step     what an optimiser step costs against flow matching (10 minutes)"
	@echo "make objectives     train digits with every objective, three seeds each (40 minutes)"
	@echo "make reproduce      every table and figure of the paper, on digits (80 minutes)"
	@echo "make results        measure anew what the README shows"
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

bench: $(VENV)/.installed
	$(BIN)/mmf bench --out runs/bench

bundles/cifar10-random: $(VENV)/.installed
	$(BIN)/mmf train cifar10-random --out runs/cifar10-random
	$(BIN)/mmf export runs/cifar10-random --out bundles/cifar10-random --force \
		--target onnxruntime-cpu,openvino,plain --precision fp32,bf16,int8

bench-cifar10: bundles/cifar10-random
	$(BIN)/mmf bench bundles/cifar10-random --baseline runs/cifar10-random \
		--pytorch compile,bf16,compile-bf16 --batches 1 --threads $$(nproc) --seconds 100 \
		--profile --out benchmarks/results/cifar10-random-cpu

bench-limit: $(VENV)/.installed
	$(BIN)/mmf bench-limit --out benchmarks/results

bench-peers: bundles/cifar10-random
	$(BIN)/python benchmarks/peers/run.py --checkpoint runs/cifar10-random \
		--bundle bundles/cifar10-random --seconds 60 --out benchmarks/results/peers-cpu \
		--only plain,optimum-conv,openvino-default,openvino-bf16,openvino-f32,nncf-default,nncf-f32

bench-scale: $(VENV)/.installed
	$(BIN)/python benchmarks/scale.py --out benchmarks/results/scale-cpu

bench-plan: $(VENV)/.installed
	$(BIN)/mmf plan --rate 500 --p99 50ms --check --out benchmarks/results/plan-cpu

bench-repeat: $(VENV)/.installed
	$(BIN)/python benchmarks/repeat.py

# needs an NVIDIA GPU, and onnxruntime-gpu in place of onnxruntime
bench-cifar10-gpu: $(VENV)/.installed
	$(BIN)/mmf train cifar10-random --out runs/cifar10-random
	$(BIN)/mmf export runs/cifar10-random --out bundles/cifar10-random-gpu --force \
		--target onnxruntime-cuda --precision fp32,fp16
	$(BIN)/mmf selftest bundles/cifar10-random-gpu --device cuda
	for mode in eager tf32 bf16 fp16 cudagraph cudagraph-tf32 cudagraph-bf16 cudagraph-fp16; do \
		$(BIN)/mmf selftest bundles/cifar10-random-gpu --device cuda --engine pytorch \
			--checkpoint runs/cifar10-random --mode $$mode || exit 1; done
	$(BIN)/mmf bench bundles/cifar10-random-gpu --baseline runs/cifar10-random --device cuda \
		--pytorch $(GPU_MODES) --batches 1,2,4,8,16,32,64,128,256,512 --threads 1 --seconds 30 \
		--out benchmarks/results/cifar10-random-gpu

GPU_MODES := tf32,bf16,fp16,compile,compile-tf32,compile-bf16,compile-fp16,cudagraph,cudagraph-tf32,cudagraph-bf16,cudagraph-fp16

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

bench-load: $(VENV)/.installed
	$(BIN)/mmf bench-serve --rate auto --images 64 --deadline-ms 250 --out benchmarks/results/load-cpu

bench-digits: $(VENV)/.installed
	$(BIN)/mmf train digits --out runs/digits
	$(BIN)/mmf export runs/digits --out bundles/digits-all --force \
		--target onnxruntime-cpu,openvino,plain --precision fp32,bf16,int8
	$(BIN)/mmf bench bundles/digits-all --baseline runs/digits --pytorch compile,bf16 \
		--threads 1 --seconds 20 --out benchmarks/results/digits-cpu

bench-step: $(VENV)/.installed
	$(BIN)/mmf bench-step --seconds 120 --device cpu --out benchmarks/results/bench-step-cpu

objectives: $(VENV)/.installed
	$(BIN)/python benchmarks/objectives.py

# measure anew what the pages show, one after the other on a quiet machine (an hour)
results: bench-cifar10 bench-digits bench-limit bench-step bench-peers bench-scale bench-plan \
		bench-repeat bench-load bench-serve
	rm -rf runs/quickstart
	$(BIN)/mmf quickstart
	cp runs/quickstart/quickstart.json benchmarks/results/quickstart-cpu.json
	$(BIN)/python benchmarks/render.py

report: $(VENV)/.installed
	$(BIN)/mmf report benchmarks/results --out runs/report.html

reproduce: $(VENV)/.installed
	$(BIN)/mmf reproduce all --scale digits
	rm -rf benchmarks/results/reproduction-digits
	cp -r runs/reproduce/digits/results benchmarks/results/reproduction-digits
	$(BIN)/python benchmarks/render.py

digits-bundle: $(VENV)/.installed
	$(BIN)/mmf train digits --out runs/digits
	$(BIN)/mmf export runs/digits --out mmf_deploy/assets/digits --force \
		--precision fp32,int8 --steps 1,2,4
	$(BIN)/python -m mmf_deploy.embedded runs/digits

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
