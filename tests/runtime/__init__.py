"""Tests of `fl_runtime`. A package, so that pytest finds the helpers in ``tests/``."""
