# Everything a developer or a new user types. `make` alone lists it.
# Triton's wheel needs numpy 1, which ends with Python 3.12.
PYTHON ?= $(shell for name in python3 python3.12 python3.11; do \
  $$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$name && break; done)
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ARGS   ?=
SEED    ?= 1
MINUTES ?= 20

.DEFAULT_GOAL := help
.PHONY: help demo test fault-rows faults lint protos models bench bench-check trouble outcomes swaps backends interop peers docs clean \
  images loadtest chart-tools cluster-tools cluster cluster-down test-cluster

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 18

demo: $(READY) ## stream real data through a real Kafka and a real Triton, and swap the model on the way (ARGS="--model maintenance")
	@$(BIN)/headrace demo $(ARGS)

test: $(READY) lint ## lint, types, import rules, generated files, and every test against real Kafka and Triton (ARGS="-k name")
	@# Two at a time, each with servers of its own: most of them wait. A file stays together, for what its tests share.
	@$(BIN)/pytest -n 2 --dist loadfile $(ARGS)

fault-rows: $(READY) ## every row of the fault catalogue, in both modes (ARGS="--seeds 5")
	@$(BIN)/pytest tests/faults --all-rows $(ARGS)

faults: $(READY) ## a seeded schedule of random faults under load, judged in the end (SEED=1 MINUTES=20 ARGS="--delivery at_least_once")
	@$(BIN)/python -m tests.faults.soak --seed $(SEED) --minutes $(MINUTES) $(ARGS)

lint: $(READY) ## style, types, import rules, and that generated files are up to date
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python protos/generate.py --check
	@$(BIN)/python -m docs.generate --check

protos: $(READY) ## generate the message classes from protos/
	@$(BIN)/python protos/generate.py

bench-check: $(READY) ## whether an event still costs what it did, in copies of it (ARGS="--store" to take what it costs now)
	@$(BIN)/python -m loadtest.bench.guard $(ARGS)

trouble: $(READY) ## poison and a model outage: what they cost (ARGS="poison --rounds 3")
	@$(BIN)/python -m loadtest.trouble $(ARGS)

outcomes: $(READY) ## what comes of every event when one cannot be read, and when the model dies: here and in the peers (ARGS="headrace")
	@$(BIN)/python -m loadtest.outcomes $(ARGS)

swaps: $(READY) ## 50 model versions published, dropped in and rolled back under 5,000 events/s (ARGS="--swaps 5")
	@$(BIN)/python -m loadtest.swaps $(ARGS)

backends: $(READY) ## the backend beside its frameworks called directly, at batches of 1 to 1,024 (ARGS="--rounds 5")
	@$(BIN)/python -m loadtest.backends $(ARGS)

interop: $(READY) ## other people's servers: the whole bridge on MLServer, a model repository in an S3
	@for name in mlserver s3; do \
	  [ -e .peers/interop-$$name/.ready ] || { \
	    "$(PYTHON)" -m venv .peers/interop-$$name && \
	    .peers/interop-$$name/bin/pip install --quiet --disable-pip-version-check --requirement tests/interop/$$name-requirements.txt && \
	    touch .peers/interop-$$name/.ready; \
	  } || exit 1; \
	done
	@$(BIN)/pytest tests/interop $(ARGS)
	@.peers/interop-s3/bin/python tests/interop/s3.py

images: $(READY) ## the images of bridge and model side, by buildah, on a Debian of their own making (ARGS="bridge")
	@$(BIN)/python -m deploy.docker.build $(ARGS)

chart-tools: $(READY) ## build Helm 3 and helm-unittest, install promtool: with them make test covers more (Go, root)
	@$(BIN)/python -m tests.deploy.tools.build chart

cluster-tools: $(READY) ## build a whole Kubernetes and KEDA from source (Go, root; some 25 minutes on 2 cores, once)
	@$(BIN)/python -m tests.deploy.tools.build cluster

cluster: cluster-tools ## a real Kubernetes of two nodes on this machine, with our images in it (root)
	@[ -e .cluster/images/serving.tar ] || $(BIN)/python -m deploy.docker.build
	@$(BIN)/python -m tests.deploy.cluster up

cluster-down: ## remove it
	@$(BIN)/python -m tests.deploy.cluster down

test-cluster: cluster ## the chart on that Kubernetes, under load, through everything that is done to a release (ARGS="--events 100000")
	@$(BIN)/python -m tests.deploy.cluster.trial $(ARGS)

loadtest: $(READY) ## Locust against a Kafka, a Triton and a bridge started for it (ARGS="spike"; others: short, steps, soak, agree)
	@$(BIN)/python -m loadtest.load $(ARGS)

peers: $(READY) ## install the peers that headrace bench can measure, each in an environment of its own
	@for list in loadtest/peers/*/requirements.txt; do \
	  name=$$(basename $$(dirname $$list)); echo "peer $$name …"; \
	  "$(PYTHON)" -m venv .peers/$$name && \
	  .peers/$$name/bin/pip install --quiet --disable-pip-version-check --requirement $$list || exit 1; \
	done
	@command -v mvn >/dev/null || { echo "Maven and Java 17 would bring the peers in Java, too: there are none here" >&2; exit 0; }; \
	for project in loadtest/peers/*/pom.xml; do \
	  name=$$(basename $$(dirname $$project)); echo "peer $$name …"; \
	  mvn -q -B -f $$project package dependency:copy-dependencies -DoutputDirectory=$(CURDIR)/.peers/$$name/lib || exit 1; \
	done

docs: $(READY) ## generate the configuration and telemetry references from the types
	@$(BIN)/python -m docs.generate

models: $(READY) ## train the three models of model_repository/ again from their data sets (ARGS="fraud")
	@$(BIN)/python model_repository/train.py $(ARGS)

bench: $(READY) ## topic to topic: events/s and CPU per event, beside a plain copy of the topic (ARGS="backlog rates --rounds 5")
	@$(BIN)/headrace bench $(ARGS)

clean: ## remove the environment and every cache inside this folder
	rm -rf $(VENV) .peers build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# The environment: made once, and again only when what it is made from changes.
$(READY): pyproject.toml constraints.txt
	@[ -n "$(PYTHON)" ] || \
	  { echo "The demo and the tests need Python 3.11 or 3.12; name one with: make PYTHON=/path/to/python3.12 …" >&2; exit 1; }
	@echo "Making the environment in $(VENV) (once; a few minutes) …"
	@"$(PYTHON)" -m venv --clear $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[serving,local,loadtest,models,dev]'
	@# The messages of TensorFlow Serving alone: the package asks for all of TensorFlow, which is there already.
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps tensorflow-serving-api==2.21.0
	@$(BIN)/headrace kafka --fetch
	@touch $@
