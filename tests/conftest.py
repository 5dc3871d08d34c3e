"""Shared by all tests. Its place makes pytest put this folder on the import path, so that a
test in any subfolder can ``import tiny_pipelines``."""
