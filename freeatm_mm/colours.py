"""The colours that masks are shown in; here, so that showing a store needs no PyTorch."""

__all__ = ['NOUN_COLOURS']

NOUN_COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (204, 121, 167),
    (213, 94, 0),
    (240, 228, 66),
    (0, 114, 178),
)
"""Told apart with any colour vision (Okabe and Ito, 2008); reused when nouns run out of them."""
