# `make check` runs what CI runs, in the environment that is active.
.PHONY: check lint types test peft-suite soak

check: lint types test

lint:
	ruff check .
	ruff format --check .

types:
	mypy

test:
	pytest

# PEFT's own tests against SMATConfig; minutes, and fetches PEFT's source distribution the first time.
peft-suite:
	python tests/peft_suite/run.py

# 200 updates of the demo, killed 20 times; half an hour. Fewer: make soak SOAK="--updates 30 --kills 5"
soak:
	python tests/faults/soak.py $(SOAK)
