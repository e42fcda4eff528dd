# make train   a trained, evaluated and reported policy on BSuite catch, from nothing
# make test    the tests; make lint: ruff and pyright
# Each makes the virtual environment first. They need Python 3.11 or newer, pip, and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: train test lint clean

train: $(VENV)/.experiments
	$(BIN)/offline-mbrl train rosmo --dataset local/catch --seeds 5 \
	  --config.batch-size 32 --config.optimizer.learning-rate 0.002 --config.num-updates 40000

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term:skip-covered

lint: $(VENV)/.test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/.created:
	@echo "creating $(VENV)"
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.experiments $(VENV)/.test: $(VENV)/.%: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing (a few minutes the first time)"
	$(INSTALL) '.[$*]'
	touch $@
