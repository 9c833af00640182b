"""Suites that every registered plug-in passes. A package, so that pytest finds the helpers in ``tests/``."""
