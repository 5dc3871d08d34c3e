"""Free-ATM: free attention masks of diffusion models for representation learning.

The parts that make data (`freeatm_mm.attention`, `prompts`, `generation`, `store`) need nothing of
OpenMMLab; the parts that train (`datasets`, `models`, `engine`) need nothing of diffusers.
Importing this package imports neither and changes nothing. What configs of OpenMMLab name
(`FreeATMMoCo`, ...) is registered by `freeatm_mm.openmmlab`.
"""

__version__ = '0.1.0'
