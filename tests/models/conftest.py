"""Shared by the tests of models."""

import pytest
from mmengine.logging import MessageHub


@pytest.fixture(autouse=True)
def no_progress_of_other_tests():
    """Forget how far an earlier test's training was: schedules of models go by it."""
    MessageHub._instance_dict.clear()
