# Two commands do everything: `make demo` and `make test`. Both set up .venv first, from Python >= 3.11 and a package
# index alone; it is made again when pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test test-long test-browser test-metrics test-docs chaos bench wheel check format nano nano-eval constraints clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.11 ..."; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/flashvideo-ray demo runs/demo

# Three processes share the tests by their files (`tests/conftest.py`): much of a test that starts Ray is waiting, so
# that they keep two cores busy.
test: $(READY)
	$(BIN)/python -m pytest -n 3 --no-loadscope-reorder --durations=15 -m 'not long'

# Whole runs that take a minute or more each: a submitted job, and stores, nodes and jobs that go and come back.
test-long: $(READY)
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder --durations=15 -m long

# The page alone, in a real Chromium (CHROMIUM=… names one). `make test` runs it too.
test-browser: $(READY)
	$(BIN)/python -m pytest tests/serve

# Whole runs, watched by a real Prometheus (Debian's package `prometheus`): panels have data, and alerts fire.
test-metrics: $(READY)
	FLASHVIDEO_PROMETHEUS=1 $(BIN)/python -m pytest tests/test_board.py

# The quickstart as a newcomer does it: a fresh clone, an empty home, each command as it stands there. Ten minutes.
test-docs: $(READY)
	FLASHVIDEO_QUICKSTART=1 $(BIN)/python -m pytest -s tests/docs/test_quickstart.py

# Whole runs under faults; `make test-long` has a short form. CHAOS="--seed 7 --faults 120" for another one.
chaos: $(READY)
	PYTHONPATH=tests $(BIN)/python -m chaos faults $(CHAOS)
	PYTHONPATH=tests $(BIN)/python -m chaos kills $(CHAOS)

# Short forms of benchmarks: their ratios against `benchmarks/ratios.json`. Six minutes, and nothing may run beside it.
bench: $(READY)
	$(BIN)/python benchmarks/bench.py

# The package as others get it: a wheel, in an environment that has nothing else, renders the demo.
wheel:
	rm -rf build/wheel build/lib build/bdist.* && mkdir -p build/wheel  # build/lib keeps modules that are gone
	$(PYTHON) -m venv build/wheel/builder
	build/wheel/builder/bin/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv build/wheel/empty
	build/wheel/empty/bin/pip install --quiet --disable-pip-version-check -c constraints.txt build/wheel/*.whl
	build/wheel/empty/bin/pip check
	cd build/wheel && empty/bin/flashvideo-ray demo run --prompts 2 && empty/bin/flashvideo-ray verify run

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Without these a fifth of the training's time goes into page faults.
TRAIN_MALLOC := glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184

# Trains the nano model anew (hours; a killed run continues) and measures it; see docs/nano.md.
nano: $(READY)
	OMP_NUM_THREADS=1 GLIBC_TUNABLES=$(TRAIN_MALLOC) $(BIN)/python -m flashvideo_ray.nano.train all --work build/nano

nano-eval: $(READY)
	$(BIN)/python -m flashvideo_ray.nano.evaluate

# Needs `uv`. What belongs to one build of torch is left out.
constraints:
	sed -n '1,3p' constraints.txt > constraints.new
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-emit-package torch \
		--no-emit-find-links --no-annotate --no-header --quiet | grep -vE '^(nvidia|cuda|triton)' >> constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) build *.egg-info
