"""Moved to tools/miniature/evaluate_masks.py; this path works for one more release."""

from _moved import run_moved

run_moved('miniature/evaluate_masks.py')
