"""Free-ATM: free attention masks of diffusion models for representation learning.

The parts that make data (`freeatm_mm.attention`, `prompts`, `generation`, `store`) need nothing of
OpenMMLab; the parts that train (`datasets`, `models`, `engine`) need nothing of diffusers.
Importing this package imports neither. It only arranges that, where mmpretrain is used, before or
after, the components named in `docs` and configs (`FreeATMMoCo`, ...) are found in mmpretrain's
registries: `custom_imports = dict(imports=['freeatm_mm'])` in a config is all that is needed; and
that mmengine, where it is used, runs no code of the checkpoints that it reads.
"""

from __future__ import annotations

from freeatm_mm.compat import (
    call_after_import,
    read_checkpoints_safely,
    register_with_mmpretrain,
)

register_with_mmpretrain()
call_after_import('mmengine.runner.checkpoint', read_checkpoints_safely)
