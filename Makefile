# `make demo` and `make test` do everything on a machine with python3, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Bytecode is written, so that only the first import of torch is slow.
export PYTHONDONTWRITEBYTECODE :=
# Tests run in this many processes, one thread each.
JOBS ?= auto

.PHONY: demo notebook test trust trust-coverage browser coverage lint types format hooks wheel docs
.PHONY: docs-serve docs-pictures
.PHONY: check clean

demo: $(VENV)/ready
	$(BIN)/ela-probe demo -o runs/demo
	@echo "explore the analysis in a notebook: make notebook"
	@echo "run ela-probe yourself: source $(BIN)/activate"

# Opens a notebook in a browser, on the analysis that `make demo` wrote.
notebook: $(VENV)/ready
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[notebooks]'
	$(BIN)/ela-probe notebook runs/demo/analysis

test: $(VENV)/ready browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

# Hostile files: N further mutated inputs of each reader; LONG=1: until each had 100,000, for at most
# MINUTES. The results are added to those in build/trust.json: a run that is stopped goes on there.
N ?= $(if $(LONG),100000,300)
trust: $(VENV)/ready
	mkdir -p build
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.trust.fuzz $(if $(LONG),--total,-n) $(N) \
	  $(if $(MINUTES),--minutes $(MINUTES)) --json build/trust.json

# Coverage-guided fuzzing of the readers whose parsers are Python, where atheris installs.
GUIDED := recipe sites plan costs comparison ablation history analysis npz idx model-args
trust-coverage: $(VENV)/ready
	@$(BIN)/uv pip install --quiet --python $(BIN)/python atheris || \
	  echo "atheris does not install here: no coverage-guided fuzzing"
	! $(BIN)/python -c "import atheris" 2> /dev/null || for reader in $(GUIDED); do \
	  OMP_NUM_THREADS=1 $(BIN)/python -m tests.trust.fuzz_coverage $$reader -runs=$(N) || exit 1; done

# Chromium, for the tests of the report page. Where it can't be installed, they are skipped.
browser:
	@command -v chromium > /dev/null || \
	  { test "$$(id -u)" = 0 && command -v apt-get > /dev/null && apt-get -qq update && \
	    DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends chromium; } || \
	  echo "no Chromium, and no right to install it: the tests of the report page are skipped"

# The tests, and the lines that they don't reach: to look at, not a bar.
coverage: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile \
	  --cov --cov-report=term-missing --cov-report=html:build/coverage

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/deptry --no-ansi .

types: $(VENV)/ready
	$(BIN)/mypy

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The checks of .pre-commit-config.yaml before each commit.
hooks: $(VENV)/ready
	$(BIN)/pre-commit install

# An ordinary install from a wheel: the command answers, and no bare `cli` lies in site-packages,
# the recipes and the report's files are there, and a notebook can be copied out of it.
wheel: $(VENV)/ready
	rm -rf build/wheel && $(BIN)/uv build --quiet --wheel --out-dir build/wheel .
	$(BIN)/uv venv --quiet --python $(BIN)/python build/wheel/venv
	$(BIN)/uv pip install --quiet --python build/wheel/venv/bin/python --no-deps build/wheel/*.whl
	$(BIN)/uv pip install --quiet --python build/wheel/venv/bin/python -c constraints.txt typer rich
	cd build/wheel && venv/bin/ela-probe --version && venv/bin/python -c \
	  "import importlib.util as u; assert u.find_spec('ela_probe_cli') and not u.find_spec('cli')"
	cd build/wheel/venv/lib/python3*/site-packages/ela_probe && test -f recipes/cifar10-kcla.yaml \
	  && test -f report/templates/page.html && test -f report/browser/page.js \
	  && test -f report/vendor/plot.umd.min.js
	cd build/wheel && venv/bin/python -m ela_probe notebook --copy -o copied.ipynb && test -f copied.ipynb

# The documentation site, in build/site; any warning is an error, and nothing comes from elsewhere.
docs: $(VENV)/ready
	rm -rf build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	! grep -rlE '<(script|img|iframe)[^>]* src="(https?:)?//|<link[^>]*stylesheet[^>]* href="(https?:)?//' \
	  --include='*.html' build/site

docs-serve: $(VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# The pictures of docs/tutorial.md.
docs-pictures: $(VENV)/ready
	$(BIN)/ela-probe demo -o build/pictures
	cp $(addprefix build/pictures/analysis/figures/,adjacent.png kl-stages.0.png beta-stages.0.png) \
	  docs/images/tutorial/

check: lint types test

# A virtual environment with the package (editable) and its development tools, by uv from pip.
$(VENV)/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
