PYTHON ?= python

.PHONY: check test test-slow bench

check:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest

test-slow:
	$(PYTHON) -m pytest -m slow

bench:
	$(PYTHON) benchmarks/peers.py
