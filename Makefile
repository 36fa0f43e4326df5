# Every target runs from a bare checkout: it needs make and Python 3.11 or newer.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# What `make search`, `make compare`, `make bench` and `make test` are run with.
RUN_DIR      ?= runs/search-$(shell date +%Y%m%d-%H%M%S)
SEARCH_ARGS  ?= --tasks proxies --preset minutes --seed 0 --run-dir $(RUN_DIR)
COMPARE_ARGS ?= --tasks suite --quick --workers 2
BENCH_ARGS   ?=
TEST_ARGS    ?= -n 2 -q
FAULTS_ARGS  ?= -v $(addprefix tests/test_,faults.py faults_programs.py ledger.py executors.py cluster.py)

.DEFAULT_GOAL := help
.PHONY: help setup search compare bench bench-learned bench-gpu test faults lint types imports links lines docs site lock clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s  %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)  ## Create .venv and install the locked packages (does nothing if up to date)
	@:

$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
		echo "optforge needs Python 3.11 or newer, and '$(PYTHON)' was not found. Name yours with: make PYTHON=/path/to/python3 setup" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "optforge needs Python 3.11 or newer, and '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1). Name a newer one with: make PYTHON=/path/to/python3 setup" >&2; exit 1; }
	@if ! $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
		echo "setup: creating $(VENV) with $$("$(PYTHON)" --version)"; \
		"$(PYTHON)" -m venv --clear $(VENV); \
	fi
	@echo "setup: installing the packages locked in constraints.txt (a minute or two)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev,peers]' -c constraints.txt
	@touch $@
	@echo "setup: done, $$($(BIN)/python --version) with torch $$($(BIN)/python -c 'from importlib.metadata import version; print(version("torch"))')"

search: setup  ## Search for an optimizer on a small task, in a fresh folder under runs/
	@$(BIN)/optforge search $(SEARCH_ARGS)

compare: setup  ## Compare the newest search's best program with tuned AdamW and Lion on other tasks
	@found=$$($(BIN)/python -c 'from optforge.experiments.cli.compare_command import newest_search; print(newest_search() or "")'); \
	if [ -z "$$found" ]; then echo "compare: there is no search under runs/ yet (make search makes one), so baselines only"; fi; \
	$(BIN)/optforge compare $${found:+"$$found"} $(COMPARE_ARGS)

bench: setup  ## Measure how long the optimizers' steps take
	@$(BIN)/python -m optforge.experiments.bench $(BENCH_ARGS)

bench-learned: setup  ## Measure how far results depend on the initial learning rate, then meta-trained optimizers
	@$(BIN)/python -m optforge.experiments.bench.learned $(BENCH_ARGS)
	@$(if $(BENCH_ARGS),:,$(BIN)/python -m optforge.experiments.bench.meta)

bench-gpu: setup  ## Measure populations on a CUDA device, if there is one
	@$(BIN)/python -m optforge.experiments.bench.gpu $(BENCH_ARGS)

# One thread in each test process: they share the cores already.
test: setup  ## Run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TEST_ARGS)

# -m "" takes in what the test suite leaves out; the extra is for the tests on Ray.
faults: setup  ## Kill, starve, damage and flood the search on purpose (half an hour or more)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[cluster]' -c constraints.txt
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "" -n 0 $(FAULTS_ARGS)

lint: setup  ## Check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup links  ## Check the type annotations
	@$(BIN)/mypy

imports: setup links  ## Check which package imports which
	@cd build/types && ../../$(BIN)/lint-imports --no-logo --config ../../pyproject.toml --cache-dir ../../.import_linter_cache

# Tools that read source files need a folder that looks as the installed package does.
links:
	@mkdir -p build/types/optforge
	@ln -sfn ../../../primitives ../../../baselines ../../../learned ../../../search ../../../experiments $(addprefix ../../../,$(wildcard optforge/*.py)) build/types/optforge/

# Without tests, benchmarks, generators of docs and examples.
lines:  ## Count the lines of each package
	@for folder in optforge primitives baselines learned search experiments; do \
		printf '%-12s %6d\n' $$folder $$(find $$folder -name '*.py' -not -path '*/bench/*' -not -path '*/docs/*' -not -path '*/examples/*' | xargs cat | wc -l); \
	done | awk '{ print; total += $$2 } END { printf "%-12s %6d\n", "in all", total }'

docs: setup  ## Write the pages and tables that describe the language and the optimizers
	@$(BIN)/python -m optforge.experiments.docs

site: setup  ## Build the documentation into site/; a link that leads nowhere is an error
	@$(BIN)/python -c 'import material' 2>/dev/null || $(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[docs]' -c constraints.txt
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Resolves all extras afresh, in a venv that is thrown away, and writes down what came.
lock:  ## Lock the newest allowed versions of everything in constraints.txt
	@set -eu; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	"$(PYTHON)" -m venv "$$tmp/venv"; \
	echo "lock: resolving all extras (a few minutes)"; \
	"$$tmp/venv/bin/python" -m pip install -qq --disable-pip-version-check -e '.[cluster,peers,text,docs,dev]'; \
	"$$tmp/venv/bin/python" -m pip check; \
	"$$tmp/venv/bin/python" -m pip freeze --all --exclude-editable --exclude pip --exclude wheel > "$$tmp/frozen"; \
	for name in $$(sed -n 's/ @ .*//p' "$$tmp/frozen"); do \
		"$$tmp/venv/bin/python" -c 'import sys; from importlib.metadata import version; print(sys.argv[1] + "==" + version(sys.argv[1]))' "$$name"; \
	done > "$$tmp/from-files"; \
	{ echo "# Locked versions of every dependency and extra; regenerate with: make lock"; \
	  { grep -v ' @ ' "$$tmp/frozen"; cat "$$tmp/from-files"; } | sed 's/+.*//' | LC_ALL=C sort -f; } > "$$tmp/constraints.txt"; \
	cp "$$tmp/constraints.txt" constraints.txt; \
	echo "lock: constraints.txt names $$(grep -c == constraints.txt) packages"

clean:  ## Remove .venv and the tools' caches, but not runs/
	@rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
