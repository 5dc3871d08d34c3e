"""Moved to tools/store/edit.py; this path works for one more release."""

from _moved import run_moved

run_moved('store/edit.py')
