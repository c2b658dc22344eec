# `make demo` and `make test` set themselves up: a virtual environment with the pinned requirements.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: demo test lint parity

demo: $(VENV)/installed
	$(RUN) -m mmaudio_jax.demo

test: lint
	$(RUN) -m pytest -m "not parity"

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

# Every released network at full size against the golden vectors: ten minutes on two cores.
parity: $(VENV)/installed
	$(RUN) -m pytest -m parity tests/parity

$(VENV)/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
