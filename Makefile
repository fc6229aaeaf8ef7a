PYTHON ?= python

.PHONY: check test test-slow fuzz test-clients test-frameworks test-trainers test-ray test-agents test-clients-ray test-stores record-clients bench

check:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest

test-slow:
	$(PYTHON) -m pytest -m slow -n auto

# Readers of checkpoints and of data on damaged files, the server's batches and an index in any order of events, and
# requests of all dialects, for as long as FUZZ_EXAMPLES of each kind take.
fuzz:
	FUZZ_EXAMPLES=$(or $(FUZZ_EXAMPLES),20000) $(PYTHON) -m pytest tests/checkpoint/test_fuzz.py tests/data/test_fuzz.py \
		tests/faults/test_states.py tests/server/dialects/test_properties.py

# What a release is made of; docs/releasing.md has the checklist. It needs: pip install build pip-audit cyclonedx-bom.
.PHONY: audit dist
audit:
	$(PYTHON) -m pip_audit --strict -r constraints.txt

dist:
	rm -rf dist
	$(PYTHON) -m build --outdir dist .
	$(PYTHON) -m build --outdir dist packages/multilingual
	$(PYTHON) -m cyclonedx_py requirements constraints.txt --output-reproducible --output-file dist/sbom.json
	cd dist && sha256sum * > SHA256SUMS

bench:
	$(PYTHON) benchmarks/peers.py

# The clients of other makers run in environments of their own, which are built once and kept.
CLIENTS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/secondpass/clients
TESTED = tests/server/clients

$(CLIENTS)/%/ready: $(TESTED)/requirements-%.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install -qq -r $<
	touch $@

$(CLIENTS)/frameworks/ready: tests/integrations/requirements.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install -qq torch==2.13.0
	$(@D)/bin/python -m pip install -qq -r $<
	touch $@

# The frameworks that secondpass/integrations has classes for.
test-frameworks: $(CLIENTS)/frameworks/ready
	$(CLIENTS)/frameworks/bin/python -m pip install -qq -e ".[serve]"
	$(CLIENTS)/frameworks/bin/python -m pytest -W ignore -o asyncio_mode=auto -m clients tests/integrations

$(CLIENTS)/stores/ready: tests/search/requirements-stores.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install -qq -r $<
	touch $@

# Databases that keep an index, each a real server that the tests start.
test-stores: $(CLIENTS)/stores/ready
	$(CLIENTS)/stores/bin/python -m pip install -qq -e ".[search]"
	$(CLIENTS)/stores/bin/python -m pytest -m clients tests/search

$(CLIENTS)/trainers/ready: tests/training/requirements.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install -qq torch==2.13.0
	$(@D)/bin/python -m pip install -qq -r $<
	touch $@

# The libraries that load what is trained here.
test-trainers: $(CLIENTS)/trainers/ready
	$(CLIENTS)/trainers/bin/python -m pip install -qq -e ".[train]"
	$(CLIENTS)/trainers/bin/python -m pytest -W ignore -m clients tests/training

$(CLIENTS)/ray/ready: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install -qq -e ".[ray]" pytest==9.2.0 "moto[server]==5.2.5"
	touch $@

# Two nodes on this machine, actors, nodes and drivers that are killed: some minutes.
test-ray: $(CLIENTS)/ray/ready
	$(CLIENTS)/ray/bin/python -m pytest -W ignore -m clients tests/scale

# The clients of other makers against replicas on Ray.
test-clients-ray: $(CLIENTS)/ray/ready $(CLIENTS)/all/ready
	$(CLIENTS)/all/bin/python -m pip install -qq -e ".[serve]"
	SECONDPASS_SERVE="$(CLIENTS)/ray/bin/python -m secondpass serve --on ray --replicas 2 --cpus 0.5" \
		$(CLIENTS)/all/bin/python -m pytest -W ignore -m clients --ignore=$(TESTED)/test_more.py $(TESTED)

# OpenClaw and the MCP inspector, with the Node that they need (650 MB from npm; some minutes). SECONDPASS_LANCEDB_PRO names
# a folder with memory-lancedb-pro after npm install, if there is one.
NODE = $(CLIENTS)/agents/node/node_modules/.bin:$(CLIENTS)/agents/node_modules/.bin:$(PATH)
$(CLIENTS)/agents/ready: tests/agents/package.json
	mkdir -p $(@D)/node
	npm install --silent --prefix $(@D)/node node@26.10.0
	cp $< $(@D)
	PATH=$(NODE) npm install --silent --prefix $(@D)
	touch $@

test-agents: $(CLIENTS)/agents/ready
	PATH=$(NODE) node --test packages/openclaw/test/*.test.js
	PATH=$(NODE) $(PYTHON) -m pytest -W ignore -m clients tests/agents

test-clients: $(CLIENTS)/all/ready $(CLIENTS)/newest/ready $(CLIENTS)/infinity/ready $(CLIENTS)/more/ready
	$(CLIENTS)/all/bin/python -m pip install -qq -e ".[serve]"
	$(CLIENTS)/newest/bin/python -m pip install -qq -e ".[serve]"
	$(CLIENTS)/more/bin/python -m pip install -qq -e ".[serve]"
	$(CLIENTS)/more/bin/python -m pytest -W ignore -m clients $(TESTED)/test_more.py
	SECONDPASS_INFINITY_PYTHON=$(CLIENTS)/infinity/bin/python \
		$(CLIENTS)/all/bin/python -m pytest -W ignore -m clients --ignore=$(TESTED)/test_more.py $(TESTED)
	SECONDPASS_RECORD= $(CLIENTS)/newest/bin/python -m pytest -W ignore -m clients $(addprefix $(TESTED)/test_,cohere.py vllm.py voyageai.py)

# Writes tests/server/dialects/recorded anew.
record-clients:
	SECONDPASS_RECORD=1 $(MAKE) test-clients
