# make train   from nothing: ROSMO beside behavior cloning on two small datasets of BSuite catch, with
#              5 seeds each: 300 episodes of uniform actions, and 1 % of a DQN's online run
# make test    the tests; make lint: ruff and pyright; make coverage: the lines that no test runs
# Each makes the virtual environment first. They need Python 3.11 or newer, pip, and make.
# PYTHON chooses the interpreter (python3.13), VENV the folder of the environment, and CONSTRAINTS
# the versions: the oldest that are supported on Python 3.11, the newest on later ones.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

MINOR = import sys; print(sys.version_info.minor)
REQUESTED := $(shell $(PYTHON) -c '$(MINOR)')
ifeq ($(REQUESTED),)
$(error PYTHON=$(PYTHON) does not start: choose another interpreter)
endif
INSTALLED := $(shell test -x $(BIN)/python && $(BIN)/python -c '$(MINOR)' || echo $(REQUESTED))
ifneq ($(origin PYTHON),file)
ifneq ($(REQUESTED),$(INSTALLED))
$(error $(VENV) has Python 3.$(INSTALLED), PYTHON is 3.$(REQUESTED): choose another VENV, or remove it)
endif
endif

CONSTRAINTS ?= constraints-$(if $(filter 11,$(INSTALLED)),oldest,newest).txt
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check \
  --constraint $(CONSTRAINTS) --editable

.PHONY: train test coverage lint clean

DATA := catch-random catch-fraction1
ALGORITHMS := bc rosmo
RUNS := $(foreach data,$(DATA),$(ALGORITHMS:%=runs/%-local-$(data)))

train: $(VENV)/.experiments
	set -e; for data in $(DATA); do for algorithm in $(ALGORITHMS); do \
	  $(BIN)/offline-mbrl train $$algorithm --dataset local/$$data --seeds 5 --config.batch-size 32 \
	    --config.optimizer.learning-rate 0.002 --config.num-updates 20000; \
	done; done
	$(BIN)/offline-mbrl report $(RUNS)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal

coverage: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term:skip-covered

lint: $(VENV)/.test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/.created:
	@echo "creating $(VENV)"
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.experiments $(VENV)/.test: $(VENV)/.%: $(VENV)/.created pyproject.toml $(CONSTRAINTS)
	@echo "installing (a few minutes the first time)"
	$(INSTALL) '.[$*]'
	touch $@
