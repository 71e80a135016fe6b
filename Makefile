# `make check` runs what CI runs, in the environment that is active.
.PHONY: check lint types docs test check-minimum peft-suite soak fuzz

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
	pytest

# The tests with the lowest versions that setup.cfg allows, in a virtualenv of their own.
check-minimum:
	bash .ci/minimum

# PEFT's own tests against SMATConfig; minutes, and fetches PEFT's source distribution the first time.
peft-suite:
	python tests/peft_suite/run.py

# 200 updates of the demo, killed 20 times; half an hour. Fewer: make soak SOAK="--updates 30 --kills 5"
soak:
	python tests/faults/soak.py $(SOAK)

# 100,000 mutated files to the readers of others' files; some minutes. Needs atheris: pip install atheris
fuzz:
	python tests/faults/fuzz.py $(FUZZ)
