# make demo and make test are all a newcomer needs; CONTRIBUTING.md has the rest.
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet
MODEL := smollm2-135m
SOURCES := $(shell find src CMakeLists.txt pyproject.toml -type f \
	-not -name '*.so' -not -path '*/__pycache__/*')

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test torch prove sim check format docs peers scale serving results \
	drafter load soak chaos fuzz clients clean

help:
	@echo 'make demo     install Paceline in .venv, fetch a small model, answer a prompt with speculation'
	@echo 'make test     install what the tests need and run them'
	@echo 'make torch    install PyTorch and transformers too, and run the tests that need them'
	@echo 'make check    the whole gate: format, lint, types, tests'
	@echo 'make prove    the long proofs'
	@echo 'make sim      10,000 simulated days of the scheduler; SEEDS=N for another number'
	@echo 'make format   put the code into its form'
	@echo 'make docs     write the pages that are made from the code'
	@echo 'make peers    install and measure every other engine this machine can run; ONLY=a,b for some'
	@echo 'make scale    measure passes of random models of 0.1 to 3 billion parameters'
	@echo 'make serving  measure the server under 1 to 16 streams; LLAMA_SERVER=program to measure that beside it'
	@echo 'make results  measure all of this and write it into the pages; PROMPTS=FILE to choose prompts'
	@echo 'make drafter  make data and train a drafter, the larger recipe of docs/training.md; TOKENS=n, DEVICE=cuda'
	@echo 'make load     256 streams at once for 10 minutes, then more requests than the server takes; SECONDS=n'
	@echo 'make soak     an hour of requests of all kinds with faults among them; SECONDS=n for another time'
	@echo 'make chaos    the same for 10 minutes while engines are killed'
	@echo 'make fuzz     5,000 cases made of the OpenAPI file'
	@echo "make clients  sessions with OpenAI's clients of versions 2 and 3, with llm and with AIPerf"
	@echo 'make clean    remove what was built'

demo: $(VENV)/installed
	@$(BIN)/paceline demo

test: $(VENV)/installed-for-tests
	$(BIN)/paceline models pull $(MODEL)
	$(BIN)/python -m pytest --require-model

torch: $(VENV)/installed-for-tests $(VENV)/torch
	$(BIN)/python -m pytest tests/torch tests/gpu tests/train tests/contract/test_targets.py tests/contract/test_page_sharing.py

prove: $(VENV)/installed-for-tests
	$(BIN)/paceline models pull $(MODEL)
	$(BIN)/python -m tests.prove

sim: $(VENV)/installed-for-tests
	$(BIN)/python -m tests.sim --seeds $(or $(SEEDS),10000) --jobs $$(nproc)

check: $(VENV)/installed-for-tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@$(MAKE) --no-print-directory test

format: $(VENV)/tools
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/installed-for-tests
	$(BIN)/python docs/write_cli.py
	$(BIN)/python docs/write_dashboard.py

peers: $(VENV)/installed
	$(BIN)/python -m benchmarks.peers $(if $(ONLY),--only $(ONLY)) $(if $(PROMPTS),--prompts $(PROMPTS)) \
		$(foreach python,$(LLAMA_PYTHON),--llama-python $(python)) \
		$(foreach program,$(LLAMA_SERVER),--llama-server $(program))

scale: $(VENV)/installed
	$(PIP) 'matplotlib>=3.8'
	$(BIN)/python -m benchmarks.scale --plot docs/scale.png

serving: $(VENV)/installed-for-tests
	$(BIN)/python -m benchmarks.serving $(if $(PROMPTS),--prompts $(PROMPTS)) \
		$(foreach program,$(LLAMA_SERVER),--llama-server $(program))
	$(BIN)/python -m benchmarks.tables

RESULTS := benchmarks/results
CHOSEN := $(if $(PROMPTS),--prompts $(PROMPTS),--limit 70)
FIXED := 'auto;suffix@fixed;suffix;auto@fixed:nodes=4;auto@fixed:nodes=8;suffix+recycling'
results: $(VENV)/installed
	mkdir -p $(RESULTS)
	$(BIN)/paceline bench step --json > $(RESULTS)/step.json
	$(BIN)/paceline bench speed --drafter $(FIXED) $(CHOSEN) --json > $(RESULTS)/speed.json
	$(BIN)/paceline bench speed --drafter 'auto;suffix@fixed;suffix' --temperature 1 $(CHOSEN) --json \
		> $(RESULTS)/sampled.json
	$(BIN)/paceline bench sweep --drafter auto@throughput --nodes 16 --batch 1,2,4,8,16 --max-tokens 96 $(CHOSEN) \
		--json > $(RESULTS)/batches.json
	@$(MAKE) --no-print-directory peers
	@$(MAKE) --no-print-directory scale
	$(BIN)/python -m benchmarks.tables

DRAFTER := build/drafter
drafter: $(VENV)/installed-for-tests $(VENV)/torch
	$(BIN)/paceline train data $(DRAFTER)/answers --model $(MODEL) --max-tokens-total $(or $(TOKENS),50000000) \
		--no-states $(if $(PROMPTS),--prompts $(PROMPTS),--invent 100000)
	$(BIN)/paceline train run $(DRAFTER)/answers --out $(DRAFTER)/first --arch eagle3:depths=1 \
		--device $(or $(DEVICE),cpu)
	$(BIN)/paceline train run $(DRAFTER)/answers --out $(DRAFTER)/trained --arch eagle3:depths=5 --epochs 2 \
		--start-from $(DRAFTER)/first --learning-rate 4e-3 --device $(or $(DEVICE),cpu)
	$(BIN)/paceline train eval $(DRAFTER)/trained

load: $(VENV)/installed-for-tests
	$(BIN)/python -m tests.serve.load $(if $(SECONDS),--seconds $(SECONDS))

soak: $(VENV)/installed-for-tests
	$(BIN)/python -m tests.serve.soak $(if $(SECONDS),--seconds $(SECONDS))

chaos: $(VENV)/installed-for-tests
	$(BIN)/python -m tests.serve.soak --seconds $(or $(SECONDS),600) --kill-every 10

fuzz: $(VENV)/installed-for-tests $(VENV)-schemathesis/created
	$(BIN)/python -m tests.serve.fuzz $(VENV)-schemathesis/bin/schemathesis

clients: $(VENV)/installed-for-tests $(VENV)-openai2/created $(VENV)-openai3/created $(VENV)-aiperf/created
	$(BIN)/python -m tests.serve.clients $(VENV)-openai2/bin/python $(VENV)-openai3/bin/python \
		--aiperf $(VENV)-aiperf/bin/aiperf

clean:
	rm -rf $(VENV) $(VENV)-* build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# What pyproject.toml lists under the extra $(1), in the versions of the constraints.
define install-extra
$(BIN)/python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
		print(*project['optional-dependencies']['$(1)'], sep='\n')" > $(VENV)/$(1).txt && \
	$(PIP) --constraint constraints-dev.txt --requirement $(VENV)/$(1).txt
endef

# Each stamp says that a step was done; it is done again when something it depends on is younger.

$(VENV)/created:
	@set -e; \
	for python in $(or $(PYTHON),python3.11 python3 python3.12 python3.13); do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Making $(VENV) with $$($$python --version)"; \
			$$python -m venv $(VENV) || { \
				echo "make: $$python cannot make an environment; on Debian: apt install python3-venv" >&2; \
				exit 1; }; \
			touch $@; \
			exit 0; \
		fi; \
	done; \
	echo 'make: Paceline needs Python 3.11 or newer and found none$(if $(PYTHON), in $(PYTHON));' \
		'install it, or name it: make demo PYTHON=/path/to/python3.11' >&2; \
	exit 1

# What only talks with the server has environments of its own.
$(VENV)-schemathesis/created: PACKAGES := 'schemathesis>=4,<5'
$(VENV)-openai2/created: PACKAGES := 'openai>=2,<3' 'llm>=0.27,<1'
$(VENV)-openai3/created: PACKAGES := 'openai>=3,<4'
$(VENV)-aiperf/created: PACKAGES := 'aiperf>=0.13,<1'
$(VENV)-%/created: $(VENV)/created
	@echo 'Installing $(subst ',,$(PACKAGES))'
	@$(BIN)/python -m venv $(VENV)-$*
	@$(VENV)-$*/bin/python -m pip install --disable-pip-version-check --quiet $(PACKAGES)
	@touch $@

$(VENV)/installed: $(VENV)/created $(SOURCES)
	@echo 'Building and installing Paceline (about a minute the first time)'
	@if [ -e $(VENV)/tools ]; then \
		$(PIP) --constraint constraints-dev.txt --no-build-isolation .; \
	else \
		$(PIP) .; \
	fi
	@touch $@

$(VENV)/tools: $(VENV)/created pyproject.toml constraints-dev.txt
	@echo 'Installing what tests and checks need'
	@$(call install-extra,dev)
	@touch $@

$(VENV)/torch: $(VENV)/tools
	@echo 'Installing PyTorch and transformers'
	@$(call install-extra,torch)
	@$(call install-extra,quantised)
	@touch $@

$(VENV)/installed-for-tests: $(VENV)/tools $(VENV)/installed
	@touch $@
