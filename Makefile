# `make report` and `make test` set everything up themselves; nothing else is needed first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: report test setup lab clean

report: setup data/simulated
	$(BIN)/tcell-drugseq report reports/default.yaml --overwrite

test: setup
	$(BIN)/nbdev-test --flags slow --n-workers 2
	$(BIN)/pytest

setup: .venv/ready

.venv/ready: settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; found $$($(PYTHON) --version). Name another: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

data/simulated: | setup
	$(BIN)/tcell-drugseq simulate $@

lab: setup
	$(BIN)/jupyter lab nbs

clean:
	rm -rf .venv data/simulated reports/default build *.egg-info
