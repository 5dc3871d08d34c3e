"""Moved to tools/store/verify.py; this path works for one more release."""

from _moved import run_moved

run_moved('store/verify.py')
