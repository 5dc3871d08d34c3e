"""Moved to tools/convert/detect_objects.py; this path works for one more release."""

from _moved import run_moved

run_moved('convert/detect_objects.py')
