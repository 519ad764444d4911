# make bench   measure the disk that comes with virtblk: ARGS="vhost-user:SOCK --rw randread" for another
# make test    what CI runs: lint, types, the suite compiled, interpreted and checking, and two minutes of attack
# make check   lint and types only
# make soak    the suite with its slow tests and many more examples, and an hour of attack
# make clean   remove all that these made, .venv too

PYTHON ?= python3
UV ?= uv
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: bench test check soak coverage requirements clean

# A report is drawn with a library that nothing else needs.
bench: $(VENV)/$(if $(findstring --report,$(ARGS)),report,run).stamp
	@$(BIN)/virtblk bench $(ARGS)

test: $(VENV)/dev.stamp
	@scripts/peers
	@scripts/test check compiled interpreted checking attack

check soak coverage: $(VENV)/dev.stamp
	@scripts/test $@

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "virtblk needs Python 3.11 or newer, and $(PYTHON) is %d.%d: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "$(PYTHON) has no venv module: on Debian, apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/%.stamp: requirements/%.txt pyproject.toml | $(VENV)/made
	@echo "installing $< into $(VENV), once"
	@$(PIP) install --require-hashes -r $<
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# Pins anew, for every platform and Python at once; needs uv.
requirements:
	@for name in run report dev; do \
	    UV_CUSTOM_COMPILE_COMMAND="make requirements" $(UV) pip compile -q --upgrade --universal --python-version 3.11 \
	        --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate \
	        -o requirements/$$name.txt requirements/$$name.in || exit; \
	done

clean:
	rm -rf $(VENV) build dist src/*.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
