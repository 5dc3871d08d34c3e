"""The miniature: a small real world, and a generator trained on it, that fit two cores."""
