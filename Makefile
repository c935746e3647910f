PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
PROTOS := $(wildcard protos/slipstream/v1/*.proto)
PYTEST = $(BIN)/python -m pytest
PROTOC = $(BIN)/python -m grpc_tools.protoc -Iprotos
CODE := slipstream gateway verifier_service drafter_service tests k8s helm

# Options that are passed on: make run ARGS="--http 127.0.0.1:8001", make test ARGS="-k sampling".
ARGS ?=
WORKERS ?= 2
BENCH_ARGS ?=
QUESTIONS ?=
LOAD_ARGS ?=
PEERS_ARGS ?=
VARIANT ?= cpu
REGISTRY ?=
TAG ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
BUILD_ARGS ?=
SOAK_MINUTES ?= 60
CHAOS_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup run test test-chart lint format proto proto-check chart-docs chart-package k8s images bench bench-drafting load soak chaos bench-peers clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with everything that run, test and lint need (PYTHON=python3.12 to choose)

# torch comes first and pinned, so that no other package decides which build of it arrives.
# Without the ensurepip module (Debian's plain python3) pip is put in from outside.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or later is needed; choose one with PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) 2>/dev/null \
	  || { $(PYTHON) -m venv --clear --without-pip $(VENV) \
	       && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m tests.chart.tools $(BIN)
	@touch $@

run: $(STAMP) ## Serve the default model on http://127.0.0.1:8000 (ARGS="--model ...")
	@exec $(BIN)/slipstream up $(ARGS)

# The model is fetched first: no single test should have its time limit spent by a download.
# All of them: first side by side, file by file, then those that bear nobody beside them; the second
# part runs and tells its failures whatever the first one did. Some of them: one process, no parts.
test: $(STAMP) ## Run all tests (ARGS="-k name" for some, WORKERS=2 for how many side by side)
	@$(BIN)/slipstream fetch >/dev/null
ifeq ($(strip $(ARGS)),)
	@beside=0; last=0; set -x; \
	  $(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not alone" || beside=$$?; \
	  $(PYTEST) -m alone || last=$$?; \
	  { set +x; } 2>/dev/null; \
	  test $$beside -eq 0 || echo "The first part failed, too: see its summary above." >&2; \
	  test $$((beside + last)) -eq 0
else
	$(PYTEST) $(ARGS)
endif

lint: $(STAMP) proto-check ## ruff, mypy, import-linter, and whether what is generated is up to date
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python helm/readme.py --check
	$(BIN)/python k8s/render.py --check
	$(BIN)/hadolint --config .hadolint.yaml */Dockerfile

format: $(STAMP) ## Format the code and apply the linter's safe fixes
	$(BIN)/ruff check --fix --exit-zero $(CODE)
	$(BIN)/ruff format $(CODE)

proto: $(STAMP) ## Generate slipstream/v1 from protos/
	$(PROTOC) --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

proto-check: $(STAMP)
	@rm -rf build/proto && mkdir -p build/proto
	@$(PROTOC) --python_out=build/proto --pyi_out=build/proto --grpc_python_out=build/proto $(PROTOS)
	@diff -rq -x __init__.py -x __pycache__ build/proto/slipstream/v1 slipstream/v1 \
	  || { echo "slipstream/v1 is not what protos/ gives: run make proto" >&2; exit 1; }

test-chart: $(STAMP) ## The tests of the chart and the manifests alone, with the real helm and kubectl
	$(PYTEST) tests/chart $(ARGS)

k8s: $(STAMP) ## Write k8s/base and k8s/overlays, which come from the chart
	$(BIN)/python k8s/render.py

chart-docs: $(STAMP) ## Write the chart's README from its values and their schema
	$(BIN)/python helm/readme.py

chart-package: $(STAMP) ## Pack the chart into dist/
	$(BIN)/helm lint --strict helm/slipstream
	@mkdir -p dist
	$(BIN)/helm package helm/slipstream --destination dist

bench: $(STAMP) ## Measure against the bars (QUESTIONS=file.jsonl, BENCH_ARGS="...")
	$(BIN)/slipstream bench $(if $(QUESTIONS),--questions $(QUESTIONS)) $(BENCH_ARGS)

bench-drafting: $(STAMP) ## The drafter by context, link and number of shards (QUESTIONS=...)
	$(BIN)/slipstream bench kv $(if $(QUESTIONS),--questions $(QUESTIONS)) --limit 6
	$(BIN)/slipstream bench link $(if $(QUESTIONS),--questions $(QUESTIONS)) --limit 6 --repeats 1
	$(BIN)/slipstream bench shards
	$(BIN)/slipstream bench pipelining

# Both start a stack of their own and fail on any answer that is not the known one, and on leaks.
load: $(STAMP) ## A minute of Locust against a stack of its own (LOAD_ARGS="...")
	$(BIN)/python -m tests.load $(LOAD_ARGS)

soak: $(STAMP) ## The same for SOAK_MINUTES=60, with drafters killed at random
	$(BIN)/python -m tests.load --kill-drafter --seconds $$((60 * $(SOAK_MINUTES))) --chats 40 \
	  --out build/load/soak $(LOAD_ARGS)

# Starts a stack of its own, too, and fails on anything but the undisturbed answers.
chaos: $(STAMP) ## Kill processes at random while clients are answered (CHAOS_ARGS="--seed 7")
	$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

# The peers get virtual environments of their own under build/peers (5 GB); not part of make test.
bench-peers: $(STAMP) ## The same Locust file against vLLM and transformers (PEERS_ARGS="...")
	$(BIN)/python -m tests.load.peers $(PEERS_ARGS)

# With the first engine that is there and answers: a docker without its daemon does not. Tags are what
# the chart asks for. buildx adds what an image is made of, and a proof of where, and pushes both:
# BUILD_ARGS="--sbom=true --provenance=mode=max --push".
images: ## Build the images (VARIANT=cpu or a CUDA release as cu130, REGISTRY=, TAG=, BUILD_ARGS=)
	@engine=; for name in docker podman buildah; do \
	  if $$name info >/dev/null 2>&1; then engine=$$name; break; fi; \
	done; \
	test -n "$$engine" || { echo "An engine that builds images is needed, and none answers:" \
	  "docker (with its daemon running), podman or buildah" >&2; exit 1; }; \
	set -e; for role in gateway verifier drafter; do \
	  folder=$${role}_service; suffix=-$(if $(filter cpu,$(VARIANT)),cpu,cuda); \
	  test $$role != gateway || { folder=gateway; suffix=; }; \
	  image=$(if $(REGISTRY),$(REGISTRY:%/=%)/)slipstream/$$role:$(TAG)$$suffix; \
	  echo "$$image"; \
	  $$engine build --file $$folder/Dockerfile --tag "$$image" --build-arg VARIANT=$(VARIANT) \
	    --build-arg VERSION=$(TAG) --build-arg REVISION="$$(git rev-parse HEAD)" \
	    --build-arg CREATED="$$(git log -1 --format=%cI)" $(BUILD_ARGS) .; \
	done

clean: ## Remove the virtual environment and everything built (the model cache stays)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
