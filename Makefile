# Every target sets up what it needs in .venv; nothing else on the machine is touched (except Debian's python3-venv, by apt,
# where it is missing and you are root).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types bench example docs setup clean

demo: $(VENV)/.base  ## A first result and picture in seconds, then live, then (after installing torch) with real models.
	$(BIN)/scout demo --no-models
	@$(MAKE) --no-print-directory $(VENV)/.models
	$(BIN)/scout demo --models

test: setup lint types  ## Lint, types, and every test that this machine can run: on two cores, then those that measure, alone.
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not measuring'
	$(BIN)/python -m pytest -m measuring tests/netem tests/cluster

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

bench: setup  ## How exact the links are on this machine, how fast codec, models and simulation, how near the allocators.
	$(BIN)/scout bench links
	$(BIN)/scout bench codec
	$(BIN)/scout bench scoring
	$(BIN)/scout bench decode
	$(BIN)/scout bench simulate
	$(BIN)/scout bench allocator  # last: it fails where its aims are missed

example: setup  ## The report in docs/example, made again.
	rm -rf runs/example
	$(BIN)/scout compare configs/poisson.yaml --allocators deadline,equal,model_aware,quality_max --seeds 10 --out runs/example
	rm -rf docs/example
	$(BIN)/scout report runs/example --out docs/example
	rm docs/example/figures/*.svg docs/example/figures/*.csv  # large, and of use to nobody but who draws on

docs: setup  ## The documentation as a site, in site/, which works from files; a dead link is an error.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

setup: $(VENV)/.dev

# Each installs what it adds to the one before, and is made anew when these files change.
$(VENV)/.base: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { apt-get update -q && apt-get install -qy python3-venv; }
	$(PYTHON) -m venv $(VENV)
	@$(call install,.,Scout with Ray)

$(VENV)/.models: $(VENV)/.base
	@$(call install,.[models],torch and transformers)

$(VENV)/.dev: $(VENV)/.models
	@$(call install,.[dev],what tests and checks need)

# Install, and say how long it took and how much larger the environment is.
define install
set -e; began=$$(date +%s); before=$$(du -sm $(VENV) | cut -f1); echo "installing $(2) ..."; \
$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '$(1)'; touch $@; \
echo "installed $(2) in $$(($$(date +%s) - began)) s, $$(($$(du -sm $(VENV) | cut -f1) - before)) MB"
endef

clean:
	rm -rf $(VENV)
