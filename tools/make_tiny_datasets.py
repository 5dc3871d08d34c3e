"""Moved to tools/convert/tiny_datasets.py; this path works for one more release."""

from _moved import run_moved

run_moved('convert/tiny_datasets.py')
