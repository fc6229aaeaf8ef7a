"""Faults: what the docs promise, tried where it could fail. docs/promises.md lists each promise with its tests."""
