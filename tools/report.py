"""Moved to tools/results/report.py; this path works for one more release."""

from _moved import run_moved

run_moved('results/report.py')
