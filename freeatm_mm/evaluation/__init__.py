"""How good the masks are, how good the learnt features are, and the tables that keep both.

``mask_quality``, ``metrics`` and ``results`` need numpy alone (scipy for the t-test);
``features`` needs torch, mmpretrain and pycocotools and is therefore imported by its own name.
"""
