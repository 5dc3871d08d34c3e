"""How many examples a property-based test takes, where it isn't as many as others."""

from hypothesis import settings


def examples(usual: int) -> settings:
    """A decorator for so many examples, ten times as many with ``--hypothesis-profile search``.

    A plain ``settings(max_examples=...)`` would hold under every profile.
    """
    return settings(max_examples=usual * settings.default.max_examples // 100)
