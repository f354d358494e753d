# `make report` and `make test` set everything up themselves; nothing else is needed first.
PYTHON ?= python3
BIN := .venv/bin
# Threads that wait spin briefly, then sleep, as the command line sets it: quick alone, and not ruinous on a busy machine.
export GOMP_SPINCOUNT ?= 3000

.PHONY: report test types fuzz faults bench docs setup lab clean

report: setup data/simulated
	$(BIN)/tcell-drugseq report reports/default.yaml --overwrite

# `make test CHAPTER=latent` runs the notebooks and tests of one chapter.
CHAPTER ?=
NOTEBOOKS = $(if $(CHAPTER),$(or $(wildcard nbs/[0-9][0-9]_$(CHAPTER)),$(error CHAPTER: there is no chapter $(CHAPTER); see nbs)))
TESTS = $(if $(CHAPTER),$(wildcard tests/$(CHAPTER)),tests)

test: export OMP_NUM_THREADS = 1
test: setup
	$(BIN)/nbdev-test $(NOTEBOOKS) --flags slow --n-workers 2
	$(if $(TESTS),$(BIN)/pytest $(TESTS) --numprocesses 2 --dist loadfile --no-loadscope-reorder)

# `make fuzz TRIALS=1000` gives so many mutated inputs to the commands and prints, by kind, what became of them.
fuzz: setup
	$(BIN)/python tests/mutations.py --trials $(or $(TRIALS),1000)

types: setup
	$(BIN)/basedpyright --pythonpath $(BIN)/python

# Every benchmark as HTML and JSON in reports/bench, with few simulated screens. `make bench FEW=` takes as many as the
# committed notebooks show, which is hours; `make bench BENCH=23_speed` runs one of them.
BENCH = $(basename $(notdir $(wildcard nbs/bench/*.ipynb)))
FEW = "n_seeds": 8, "n_power_seeds": 4, "n_model_seeds": 2, "n_other_seeds": 1, "n_rival_seeds": 1, "n_fresh_seeds": 1, "job_wells": [768, 1536], "job_genes": [1000, 2500],

bench: setup
	@echo "$(BENCH): each says how long it took"
	@mkdir -p reports/bench
	@for name in $(BENCH); do \
	  begun=$$(date +%s); \
	  $(BIN)/python -c 'import sys; from tcell_drugseq.report import execute_notebook, render_html; \
	    out = sys.argv[2]; execute_notebook(sys.argv[1], {$(FEW) "out": out + ".json"}, out + ".ipynb", out + ".log"); \
	    render_html(out + ".ipynb", out + ".html")' nbs/bench/$$name.ipynb reports/bench/$$name || exit 1; \
	  echo "$$name: $$(( $$(date +%s) - begun )) s:" $$(ls reports/bench/$$name.html reports/bench/$$name.json 2>/dev/null); \
	done

# SIGKILL, SIGTERM and a full disk at random moments of run, screen, report and batch, TRIALS times each: a minute or so
# for each of the twelve. The same call goes on where another was stopped.
faults: setup
	@mkdir -p build
	$(BIN)/python tests/fault_trials.py --trials $(or $(TRIALS),30) --out build/faults.csv

setup: .venv/ready

.venv/ready: settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; found $$($(PYTHON) --version). Name another: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

data/simulated: | setup
	$(BIN)/tcell-drugseq simulate $@ --n_compounds 80 --n_doses 4 --n_references 3 --n_controls 72

# The documentation as a site in build/docs: the notebooks as they are, the pages of nbs/docs, and three reports that are
# made when they are not there yet (`make docs GALLERY=` makes none). Links are checked. It installs the extra `docs`.
GALLERY = build/gallery_pages/gallery

docs: setup $(GALLERY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	$(BIN)/sphinx-build -q -W --keep-going -c nbs/docs nbs build/docs
	@echo build/docs/docs/index.html

$(GALLERY): | setup
	@rm -rf build/gallery_data
	$(BIN)/tcell-drugseq simulate build/gallery_data/plain --n_plates 2 --n_compounds 140 --n_controls 64 --n_genes 400 --strength 2
	$(BIN)/tcell-drugseq simulate build/gallery_data/dosed --n_plates 2 --n_compounds 40 --n_doses 4 --n_controls 64 --n_genes 400 --strength 2
	$(BIN)/tcell-drugseq simulate build/gallery_data/faulty --n_plates 2 --n_compounds 140 --n_controls 64 --n_genes 400 --strength 2 --swap_plates
	$(BIN)/tcell-drugseq batch reports/gallery.yaml --reports_dir build/gallery --overwrite
	@for name in plain dosed faulty; do mkdir -p $@/$$name && cp build/gallery/$$name/report.html $@/$$name; done

lab: setup
	$(BIN)/jupyter lab nbs --LabApp.default_url=/lab/tree/tutorials/01_first_screen.ipynb

clean:
	rm -rf .venv data/simulated reports/default build *.egg-info
