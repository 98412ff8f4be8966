# make serve: everything from a clone to a running service. make test: all tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export APPLIANCE_DATA_DIR ?= $(CURDIR)/var
export PIP_DISABLE_PIP_VERSION_CHECK := 1


.PHONY: help serve packs packs-env test test-export test-clients soak check format bench lock bundle bundle-test archive airgap-test airgap-plug-test upgrade-test clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

serve: $(VENV)/.build packs ## Set everything up and start the service
	@exec $(BIN)/appliance serve

packs: $(VENV)/.build ## Build the default model packs (cached) and put them into the data directory
	@$(BIN)/python -m model_packs build --default --into "$(APPLIANCE_DATA_DIR)/packs"

test: $(VENV)/.dev ## Run all tests but the optimum export and the Node client
	$(BIN)/python -m pytest -m "not export and not clients and not bundle and not upgrade"

test-export: $(VENV)/.dev .venv-packs/.done ## Test the export through optimum (its own environment, with torch)
	$(BIN)/python -m pytest -m export

test-clients: $(VENV)/.dev ## Test with the official Node client (skipped where node or npm is missing)
	@if command -v node >/dev/null && command -v npm >/dev/null; then \
		npm ci --prefix tests/clients/node --ignore-scripts --no-audit --no-fund && \
		$(BIN)/python -m pytest -m clients; \
	else \
		echo "SKIPPED: the Node client was not tested, for node or npm is not installed here."; \
	fi

soak: $(VENV)/.dev ## Keep 64 clients busy for MINUTES (10) and check texts, stalls and memory
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),10)

check: $(VENV)/.dev ## Lint, format, types, licences
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.licences requirements/runtime.txt

format: $(VENV)/.dev ## Format and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

packs-env: .venv-packs/.done ## Make the environment of the optimum exporter

bench: $(VENV)/.dev ## Measure against peers, in one run; writes tests/benchmarks/RESULTS.md
	$(BIN)/python -m tests.benchmarks

lock: $(VENV)/.dev ## Renew the hash-pinned requirement files
	$(LOCK) --excludes requirements/export.excludes --no-emit-package torch -o requirements/export.txt requirements/export.in
	$(LOCK) -o requirements/bench.txt requirements/bench.in
	$(LOCK) --extra build --extra dev -o requirements/dev.txt requirements/editable.in pyproject.toml
	$(LOCK) --extra build -c requirements/dev.txt -o requirements/build.txt requirements/editable.in pyproject.toml
	$(LOCK) -c requirements/dev.txt -o requirements/runtime.txt pyproject.toml

bundle: $(VENV)/.dev ## Freeze the program into dist/appliance (TRUST=DIR builds in the public keys *.pub)
	@$(BIN)/python -m build.freeze $(if $(TRUST),--trust "$(TRUST)")

bundle-test: bundle ## Freeze twice and compare, then test the frozen program over the default packs
	$(BIN)/python -m build.twice
	$(BIN)/python -m pytest -m bundle tests/bundle

archive: $(if $(wildcard dist/appliance/appliance),$(VENV)/.dev,bundle) ## Sign the system bundle and the archive of a first install (KEY=FILE; SEQUENCE, TRUST=DIR, PACKS=DIR)
	@$(BIN)/python -m build.archive $(if $(KEY),--key "$(KEY)") $(if $(PASSWORD_FILE),--password-file "$(PASSWORD_FILE)") \
		$(if $(SEQUENCE),--sequence $(SEQUENCE)) $(if $(TRUST),--trust "$(TRUST)") \
		--packs "$(or $(PACKS),$(APPLIANCE_DATA_DIR)/packs)"

airgap-test: bundle ## As root: install the archive on a fresh Debian 12 in a container and prove that nothing leaves it
	@$(BIN)/python -m tests.airgap.box proof

airgap-plug-test: bundle ## As root: pull that box's plug at POINTS (20) instants each of OF (release pack backup restore)
	@$(BIN)/python -m tests.airgap.box plug --points $(or $(POINTS),20) $(if $(OF),--of $(OF))

upgrade-test: $(VENV)/.dev ## Let the real program upgrade, break, come back and go back, on a box of its own
	$(BIN)/python -m pytest -m upgrade tests/releases

clean: ## Remove the environments and caches of this clone (not the data in var/)
	rm -rf $(VENV) .venv-packs .venv-bench .mypy_cache .ruff_cache .pytest_cache dist

LOCK := $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --no-annotate --no-header

# $(call install,LOCK): the environment, exactly as locked, with this clone in it.
define install
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing $(1) ..."
	@$(BIN)/python -m pip install -q --require-hashes --only-binary :all: -r $(1)
	@$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@
endef

# torch comes first and by version only: its CPU build, where the package source offers one, has its own hash.
.venv-packs/.done: requirements/export.in requirements/export.txt
	@test -x .venv-packs/bin/python || $(PYTHON) -m venv .venv-packs
	@echo "Installing the export environment ..."
	@.venv-packs/bin/python -m pip install -q --no-deps "$$(grep '^torch==' requirements/export.in)"
	@.venv-packs/bin/python -m pip install -q --no-deps --require-hashes -r requirements/export.txt
	@.venv-packs/bin/python -c "import torch; assert torch.version.cuda is None" || \
		{ echo "The export needs a CPU build of torch: point pip at one (--extra-index-url or --find-links)."; exit 1; }
	@touch $@

$(VENV)/.build: requirements/build.txt pyproject.toml
	$(call install,requirements/build.txt)

$(VENV)/.dev: requirements/dev.txt pyproject.toml
	$(call install,requirements/dev.txt)
	@touch $(VENV)/.build
