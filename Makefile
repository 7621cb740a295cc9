# Two commands do everything: `make demo` and `make test`. Both install what they need into .venv first.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test cluster-test wheel-test lint docs bench soak attack-soak clean

demo: $(INSTALLED)
	$(BIN)/stn train examples/demo.yaml
	$(BIN)/stn certify examples/demo.yaml
	$(BIN)/stn report runs/demo

# Three at a time, those on real clusters first: they wait more than they work, and are not to be waited for at the end.
test: lint
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m 'not cluster and not hosts'

# What takes minutes: workers, nodes, drivers and machines are killed. Last a real `ray up`, on machines made of Linux
# namespaces: it needs root, and Debian's openssh-server, rsync, iproute2; where those lack, it says so and is skipped.
cluster-test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m cluster
	$(BIN)/python -m pytest -m hosts tests/cluster

# The built wheel in an environment of its own, installed anew: minutes, and 6 GB that are gone afterwards.
wheel-test: $(INSTALLED)
	$(BIN)/python -m tests.wheel

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# docs/spec.md and docs/cli.md, from the schema and the help: make test fails when they are stale.
docs: $(INSTALLED)
	$(BIN)/python docs/reference.py

# Some parts only: make bench PARTS="jobs scale"
bench: $(INSTALLED)
	MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=536870912 $(BIN)/python -m benchmarks $(PARTS)

soak: $(INSTALLED)
	$(BIN)/python -m tests.soak --kills 100 --minutes 40 --out build/soak

attack-soak: $(INSTALLED)
	MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=536870912 $(BIN)/python -m tests.soak.attacks --tries 100000

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
