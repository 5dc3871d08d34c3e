"""Moved to tools/convert/checkpoint.py; this path works for one more release."""

from _moved import run_moved

run_moved('convert/checkpoint.py')
