# make demo   adapts the example network to ten images; needs Python 3.10+ and nothing else
# make test   ruff, mypy, pytest

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test lint clean

demo: $(VENV)/runtime
	$(RUN) examples/demo.py

test: $(VENV)/development $(VENV)/metrics lint
	$(RUN) -m pytest

lint: $(VENV)/development
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy stylegan2_fewshot

$(RUN):
	$(PYTHON) -m venv $(VENV)

$(VENV)/runtime: requirements.txt | $(RUN)
	$(RUN) -m pip install --quiet --requirement requirements.txt
	touch $@

$(VENV)/development: requirements-dev.txt $(VENV)/runtime
	$(RUN) -m pip install --quiet --requirement requirements-dev.txt
	touch $@

$(VENV)/metrics: requirements-metrics.txt | $(RUN)
	$(RUN) -m pip install --quiet --no-deps --requirement requirements-metrics.txt
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
