"""BLIP with position prompts, in LAVIS: importing this registers everything with it.

Processors `freeatm_caption` and `freeatm_image_train`, builders `freeatm_pretrain` and
`freeatm_retrieval`, models `freeatm_blip_pretrain` and `freeatm_blip_retrieval`, task
`freeatm_retrieval`, and the runner `freeatm_runner`. Needs LAVIS, and nothing of OpenMMLab or
diffusers.
"""

from freeatm_mm.compat import require_lavis

require_lavis()

from freeatm_mm.lavis_ext import builders, models, processors, runner, tasks  # noqa: E402, F401
