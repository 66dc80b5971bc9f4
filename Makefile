# make demo       adapts the example network to ten images; needs Python 3.11+ and nothing else
# make test       ruff, mypy, pytest
# make data       draws the experiments' portraits: out/data
# make few-shot   compares the methods on ten images: docs/few-shot.md
# make leaderboard   the same table with methods of your own: METHOD="name=--plugin=my.py:Mine ..."
# make fisher     where the Fisher information is, and which layers change: docs/fisher.md
# make limited-data   from scratch on few images, with and without augmentation: docs/limited-data.md
# make filter-banks   many generators in one, on digits: docs/filter-banks.md; needs npm
# make instance-prior   the prior on a hundred images: docs/instance-prior.md
# make check      are the documents' tables what was measured?

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test lint data few-shot leaderboard fisher limited-data filter-banks instance-prior \
	check clean

demo: $(VENV)/runtime
	$(RUN) examples/demo.py

test: $(VENV)/development $(VENV)/metrics lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto

lint: $(VENV)/development
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

data: $(VENV)/examples
	$(RUN) examples/make_data.py

few-shot: data $(VENV)/metrics
	$(RUN) examples/few_shot.py

leaderboard: data $(VENV)/metrics
	$(RUN) examples/few_shot.py --docs=out/leaderboard $(if $(METHOD),--method="$(METHOD)")

fisher limited-data instance-prior: data $(VENV)/metrics
	$(RUN) examples/$(subst -,_,$(subst fisher,fisher_figure,$@)).py

filter-banks: $(VENV)/metrics
	$(RUN) examples/filter_banks.py

check: $(VENV)/metrics
	$(RUN) examples/check.py --measure

$(RUN):
	$(PYTHON) -m venv $(VENV)

$(VENV)/runtime: requirements.txt | $(RUN)
	$(RUN) -m pip install --quiet --requirement requirements.txt
	touch $@

$(VENV)/development: requirements-dev.txt $(VENV)/runtime
	$(RUN) -m pip install --quiet --requirement requirements-dev.txt
	touch $@

$(VENV)/examples: requirements-examples.txt $(VENV)/runtime
	$(RUN) -m pip install --quiet --requirement requirements-examples.txt
	touch $@

$(VENV)/metrics: requirements-metrics.txt | $(RUN)
	$(RUN) -m pip install --quiet --no-deps --requirement requirements-metrics.txt
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
