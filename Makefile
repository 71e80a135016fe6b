# `make check` runs what CI runs, in the environment that is active.
.PHONY: check lint types docs test check-minimum peft-suite soak spread fuzz coverage mutations

PYTEST = pytest -n auto --dist loadscope

check: lint types docs test

lint:
	ruff check .
	ruff format --check .

types:
	mypy

# The site, into build/site; a warning is an error. Needs the extra: pip install -e ".[docs]"
docs:
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --site-dir build/site

test:
	$(PYTEST)

# The tests with the lowest versions that setup.cfg allows, in a virtualenv of their own.
check-minimum:
	bash .ci/minimum

# PEFT's own tests against SMATConfig; minutes, and fetches PEFT's source distribution the first time.
peft-suite:
	python tests/peft_suite/run.py

# 200 updates of the demo, killed 20 times; half an hour. Fewer: make soak SOAK="--updates 30 --kills 5"
soak:
	python tests/faults/soak.py $(SOAK)

# The demo in 1, 2 and 4 processes: how far apart they end.
spread:
	python tests/faults/spread.py $(SPREAD)

# 100,000 mutated files to the readers of others' files; some minutes. Needs atheris: pip install atheris
fuzz:
	python tests/faults/fuzz.py $(FUZZ)

# Lines and branches that the tests run, and which test runs which line. Needs pytest-cov: pip install pytest-cov
coverage:
	$(PYTEST) --cov --cov-context=test --cov-report=term:skip-covered

# Breaks the code and reports which test notices; an hour, and `make coverage` before it.
mutations:
	python tests/mutate.py $(MUTATIONS)
