# make demo       adapts the example network to ten images; needs Python 3.10+ and nothing else
# make test       ruff, mypy, pytest
# make few-shot   compares the methods on ten images: docs/few-shot.md; needs npm, takes two hours
# make limited-data   from scratch on few images, with and without augmentation: docs/limited-data.md
# make instance-prior   the prior on ten and a hundred images: docs/instance-prior.md, takes an hour
# make filter-banks   many generators in one, on digits and ten emoji: docs/filter-banks.md; needs npm

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test lint few-shot limited-data instance-prior filter-banks clean

demo: $(VENV)/runtime
	$(RUN) examples/demo.py

instance-prior: $(VENV)/metrics
	$(RUN) examples/instance_prior.py

test: $(VENV)/development $(VENV)/metrics lint
	$(RUN) -m pytest

lint: $(VENV)/development
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy stylegan2_fewshot

few-shot: $(VENV)/metrics examples/fluent-ten.zip
	$(RUN) examples/few_shot.py

limited-data: $(VENV)/metrics
	$(RUN) examples/limited_data.py

filter-banks: $(VENV)/metrics
	$(RUN) examples/filter_banks.py

examples/fluent-ten.zip: | $(VENV)/runtime
	$(RUN) examples/make_data.py

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
