"""Moved to tools/miniature/run.py; this path works for one more release."""

from _moved import run_moved

run_moved('miniature/run.py')
