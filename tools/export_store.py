"""Moved to tools/store/export.py; this path works for one more release."""

from _moved import run_moved

run_moved('store/export.py')
