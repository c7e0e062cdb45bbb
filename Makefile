# Everything runs in .venv, which is made from requirements.lock on first use.

BIN := .venv/bin
INSTALLED := .venv/installed
# Folders too, so that a deleted file counts as a change.
BOOK := _config.yml _toc.yml $(shell find book/. pnp_tutorial tools -name __pycache__ -prune -o -print)
JOBS ?= 2
CHROME ?= $(shell for name in chromium chromium-browser google-chrome; do command -v $$name && break; done)
# Chromium as Playwright installs it, on Linux and on macOS: it is taken where there is no other.
PLAYWRIGHT := $(wildcard $(HOME)/.cache/ms-playwright/chromium-* $(HOME)/Library/Caches/ms-playwright/chromium-*)
COLAB := us-docker.pkg.dev/colab-images/public/cpu-runtime:latest
SHIPPED := secant-root-82224-7040-0
ARPEGGIO := constant-0
SUMS = cd pnp_tutorial/weights && sha256sum *.safetensors > SHA256SUMS.new && mv SHA256SUMS.new SHA256SUMS
# A row is done anew, unless it was trained here and not yet evaluated, by its study or by a call that was interrupted:
# then the call goes on. `evaluation` is what it makes last.
anew = if test -e runs/$(1)/evaluation/encoder.safetensors || ! test -e runs/$(1); then rm -rf runs/$(1) pnp_tutorial/results/$(1).json; fi

# Idle threads sleep: on a busy machine, spinning ones cost a factor of five and more.
export OMP_WAIT_POLICY = PASSIVE
# One thread a process where processes run side by side.
test: export OMP_NUM_THREADS = 1
test pdf: export CHROME := $(CHROME)
# Memory that a training step frees is kept for the next (glibc): a third faster than to ask for it anew.
study scaling encoder arpeggiator arpeggio: export MALLOC_MMAP_MAX_ = 0
study scaling encoder arpeggiator arpeggio: export MALLOC_TRIM_THRESHOLD_ = 100000000000

.DEFAULT_GOAL := help
.PHONY: help book test browser check outputs notebooks serve clean lock encoder bank study scaling arpeggiator matching benchmark
.PHONY: arpeggio recordings torture mutants compat gpu papers rivals links colab package pdf

help: ## List the targets
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

book: _build/book ## Execute the chapters that have changed, and render the site
	@echo "The book is ready: file://$(CURDIR)/_build/html/index.html"

# Sphinx does not repeat a warning about a page that it has stored, so after a failure the stored
# pages go. The outputs of the chapters stay.
_build/book: $(INSTALLED) $(BOOK)
	@rm -f $@
	$(BIN)/python tools/execute.py --jobs $(JOBS)
	$(BIN)/jupyter-book build . -n -W --keep-going || { rm -rf _build/.doctrees; exit 1; }
	$(BIN)/python tools/check_html.py _build/html
	@touch $@

test: browser check ## The whole check: lint, types, unit tests, every chapter's numbers, every page in Chromium
	$(BIN)/pytest -n $(JOBS) --dist worksteal
	@$(MAKE) --no-print-directory book
	$(BIN)/pytest -n $(JOBS) --dist worksteal tests/book

browser:
	@test -n "$(CHROME)$(PLAYWRIGHT)" || { echo "make $(MAKECMDGOALS) needs Chromium or Chrome: sudo apt install chromium," \
	    "or make $(INSTALLED) && $(BIN)/playwright install chromium," \
	    "or make $(MAKECMDGOALS) CHROME=/path/to/chrome" >&2; exit 1; }

check: $(INSTALLED) ## Lint and types, and the form of the workflows
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml

pdf: browser book ## Print the whole book as one PDF to _build/pnp_tutorial.pdf
	$(BIN)/python tools/print_book.py _build/html _build/pnp_tutorial.pdf

outputs: $(INSTALLED) ## Keep what the chapters put out now in book/outputs, which `make test` compares with
	$(BIN)/python tools/execute.py --jobs $(JOBS)
	$(BIN)/python tools/outputs.py

notebooks: $(INSTALLED) ## Write the chapters as .ipynb to _build/notebooks
	$(BIN)/python tools/export_notebooks.py _build/notebooks

links: book ## Try every link of the book that leads elsewhere
	$(BIN)/python tools/check_links.py _build/html

colab: notebooks ## Execute every exported notebook as Colab does, in its public image (needs Docker, and tens of GB)
	docker run --rm --volume $(CURDIR):/book:ro $(COLAB) python3 /book/tools/run_on_colab.py /book/_build/notebooks

# From what is committed, for a build leaves files behind.
package: $(INSTALLED) ## Build what PyPI takes, from the last commit, to _build/package
	rm -rf _build/package && mkdir -p _build/package/source
	git archive HEAD | tar -x -C _build/package/source
	cd _build/package/source && $(CURDIR)/$(BIN)/python -c \
	    "from setuptools import build_meta as b; b.build_sdist('$(CURDIR)/_build/package'); b.build_wheel('$(CURDIR)/_build/package')"
	rm -rf _build/package/source

serve: book ## Serve the book at http://localhost:8000
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html 8000

clean: ## Remove all that was built, but not .venv
	rm -rf _build .mypy_cache .pytest_cache .ruff_cache

# The one target that needs uv (https://docs.astral.sh/uv). It keeps the versions that still fit:
# delete requirements.lock first to move all of them to the newest.
lock: ## Regenerate requirements.lock from pyproject.toml
	uv pip compile pyproject.toml --extra book --extra dev --universal --python-version 3.11 \
	    --custom-compile-command "make lock" --output-file requirements.lock

encoder: $(INSTALLED) ## Train and test the encoder that ships with the package, a row of the scaling study, anew (an hour and a half)
	$(call anew,scaling/full/$(SHIPPED))
	$(BIN)/python tools/scaling.py --drums full --rows $(SHIPPED)
	PYTHONPATH=tools $(BIN)/python -c "import study; study.prepare(study.STUDY.data.data)"
	$(BIN)/pnp evaluate --encoder runs/scaling/full/$(SHIPPED)/encoder.safetensors --data data/study.zarr \
	    --output_folder runs/scaling/full/$(SHIPPED)/evaluation
	cp runs/scaling/full/$(SHIPPED)/evaluation/encoder.safetensors pnp_tutorial/weights/encoder.safetensors
	$(SUMS)

# In a folder of its own, for the study's data set takes its metrics from the bank that ships.
bank: $(INSTALLED) ## Compute the drums and metrics that ship with the package (about an hour); then delete data/study*.zarr
	$(BIN)/pnp dataset --config book/parameters/study.yaml --data data/bank.zarr
	$(BIN)/python -c "from pnp_tutorial.bank import WEIGHTS, save_bank; save_bank('data/bank.zarr', WEIGHTS / 'bank.safetensors')"
	$(SUMS)

papers: $(INSTALLED) ## Compute the metrics of the papers' grid that trainings need, piece by piece, for 100 minutes (about ten hours in all)
	$(BIN)/python tools/papers_bank.py

study: $(INSTALLED) ## Train and test every row of chapter 8's study that is missing (about twenty hours on two cores)
	$(BIN)/python tools/study.py
	$(BIN)/python tools/study.py --fresh $(foreach s,0 1 2,small-falling-parameter-root-$(s) small-falling-secant-root-$(s))

scaling: $(INSTALLED) ## Train and test the rows of chapter 8 over sounds and steps that are missing (sixteen hours on two cores, and more for the metrics of `make papers`)
	$(BIN)/python tools/scaling.py
	$(BIN)/python tools/scaling.py --drums short --fresh --rows parameter-root-16384 secant-root-16384 trace-root-16384 pnp-root-16384

rivals: $(INSTALLED) ## On a GPU: train JTFS and one path of it at a time from random weights, for 12 minutes; goes on when called again
	$(BIN)/python tools/rivals.py

arpeggiator: $(INSTALLED) ## Train and test every row of chapter 10's study that is missing (about four hours on two cores)
	$(BIN)/python tools/arpeggiator_study.py

arpeggio: $(INSTALLED) ## Train and test the arpeggiator's encoder that ships with the package, a row of its study, anew (half an hour)
	$(call anew,arpeggiator/$(ARPEGGIO))
	$(BIN)/python tools/arpeggiator_study.py $(ARPEGGIO)
	$(BIN)/pnp evaluate --encoder runs/arpeggiator/$(ARPEGGIO)/encoder.safetensors --data data/arpeggiator.zarr \
	    --n_sounds 512 --output_folder runs/arpeggiator/$(ARPEGGIO)/evaluation
	cp runs/arpeggiator/$(ARPEGGIO)/evaluation/encoder.safetensors pnp_tutorial/weights/arpeggiator.safetensors
	$(SUMS)

matching: $(INSTALLED) ## Match the sounds of chapter 9 that are missing from its results (half an hour on two cores)
	$(BIN)/python tools/matching_study.py

# The second time asks how much is chance: on one processor it says nothing, so do the two on two.
recordings: $(INSTALLED) ## Match the recorded drums that are missing from chapter 9's results, twice (half an hour on two cores)
	$(BIN)/python tools/recordings_study.py
	$(BIN)/python tools/recordings_study.py --again

torture: $(INSTALLED) ## Kill, starve and damage the library's work, and feed it rubbish, where that is missing from its results (an hour and a half, as root)
	$(BIN)/python tools/torture.py

mutants: $(INSTALLED) ## Plant bugs in the modules that are missing from its results, and see whether the tests find them (an hour)
	$(BIN)/python tools/mutants.py

benchmark: $(INSTALLED) ## Time drum, JTFS and metric against their peers, and how they grow (half an hour on a quiet machine)
	$(BIN)/python tools/benchmark.py pnp_tutorial/results/speed.json
	$(BIN)/python tools/growth.py pnp_tutorial/results/growth.json
	$(BIN)/python tools/metric_cost.py pnp_tutorial/results/metric_cost.json

compat: $(INSTALLED) ## Test with the oldest and the newest versions of all dependencies (10 minutes and 6 GB a Python)
	$(BIN)/python tools/compat.py $(PYTHONS) --jobs $(JOBS)

gpu: $(INSTALLED) ## Measure what this machine's GPU does in a second: metrics, training steps (5 minutes)
	$(BIN)/python tools/device_benchmark.py pnp_tutorial/results/speed-cuda.json --device cuda

$(INSTALLED): requirements.lock pyproject.toml pnp_tutorial/__init__.py
	@for python in python3 python3.13 python3.12 python3.11 none; do \
	    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; done; \
	test $$python != none || \
	    { echo "Python 3.11 or later is needed: sudo apt install python3.11 python3.11-venv (or later)" >&2; exit 1; }; \
	$$python -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "$$python cannot make virtual environments: sudo apt install $$python-venv" >&2; exit 1; }; \
	$$python -m venv .venv
	@echo "Installing requirements.lock into .venv (about 4 minutes the first time) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --no-deps -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@# On all cores, and now: where Python may not store what it compiles, each process would spend 20 s on it.
	@$(BIN)/python -m compileall -q -q -j 0 .venv/lib > /dev/null || true # some packages carry files that never compile
	@touch $@
