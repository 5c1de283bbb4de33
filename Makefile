# Everything goes through here; CI calls the same targets. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One thread each: torch's threads only get into each other's way there.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Two workers; whichever is done takes tests from the other.
BOTH := $(PYTEST) -n 2 --dist worksteal
export FSMERGE_CACHE ?= $(CURDIR)/.cache
export HYDRA_FULL_ERROR =
# Hundreds of tests start a process: with compiled modules each begins sooner.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help dev demo test quick smoke check format table bench scale device cost quality quality-full natural methods docs pictures test-slow test-browser wheel-test reference clean
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(READY)

dev: $(READY)  ## make the environment (.venv) and install into it

demo: $(READY)  ## the main job on the embedded digits, in under a minute after the install
	$(BIN)/fsmerge merge +models=digits_mlp_pair method=fs_merge hardware.threads=1 output.dir=outputs/demo output.overwrite=true

check: $(READY)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

quick: check  ## the subset for every commit, under a minute
	$(BOTH) -m "not full and not slow and not browser"

smoke: $(READY)  ## every registered method on digits_mlp_pair and on two text encoders, seconds each
	$(PYTEST) tests/methods/test_smoke.py tests/runs/test_text.py

test: check  ## lint, types and the whole suite
	$(BOTH) -m "not slow and not browser"

test-slow: $(READY)  ## what takes longer than `make test` may
	$(PYTEST) -m slow

test-browser: $(READY)  ## the report page in a real browser (Debian: apt install chromium); screenshots in outputs/browser
	mkdir -p outputs
	$(BIN)/python -m pytest -m browser --basetemp=outputs/browser

wheel-test: $(READY)  ## build the wheel and run the installed command from an empty folder
	$(BIN)/python -m pytest tests/test_wheel.py

table: $(READY)  ## the digits table of docs/results/index.md (about five minutes)
	$(BIN)/python scripts/digits_table.py

bench: $(READY)  ## speed and memory beside distillation, each with its bar (under 15 minutes; docs/bench.json)
	$(BIN)/python -m scripts.speed.bench --page docs/how-cost-grows.md

scale: $(READY)  ## four ViT-L/16-sized sources in under 16 GB (minutes, 5 GB of temporary files; docs/scale.json)
	$(BIN)/python -m scripts.speed.scale

device: $(READY)  ## every GPU row in one call of nine minutes at most; one line without a GPU (docs/device.md)
	$(BIN)/python -m scripts.speed.device --page docs/device.md

cost: $(READY)  ## how a step's cost grows, into docs/how-cost-grows.md (under 10 minutes)
	$(BIN)/python -m scripts.speed.cost

quality: $(READY)  ## what merges keep, small matrix (under 30 minutes on 2 cores; docs/results/)
	$(BIN)/python -m scripts.benchmark

quality-full: $(READY)  ## the whole matrix, resumable, a line per run (days on 2 cores)
	$(BIN)/python -m scripts.benchmark --full

methods: $(READY)  ## every method on two standard groups, resumable (docs/methods.md; half an hour on a core)
	$(BIN)/python -m scripts.methods

natural: $(READY)  ## merging networks trained on photographs, resumable; DATA=folder of the data sets (days on 2 cores)
	$(BIN)/python -m scripts.natural --root $(DATA)

reference: $(READY)  ## generated docs: configuration, examples, the schema of evaluation.json (seconds)
	$(BIN)/python scripts/reference.py
	$(BIN)/python scripts/examples_page.py
	$(BIN)/python -m scripts.methods --page-only
	$(BIN)/fsmerge schema > docs/evaluation.schema.json

docs: $(READY)  ## the documentation as a site, strictly, into outputs/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

pictures: $(READY)  ## the pictures of the README; needs `make demo` before, and Chromium
	$(BIN)/python -m scripts.pictures --report outputs/demo

format: $(READY)  ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what was built here
	rm -rf $(VENV) .cache build dist *.egg-info outputs .pytest_cache .ruff_cache .mypy_cache .hypothesis
