"""Everything that registers with OpenMMLab, for configs of mmpretrain, mmdet and mmseg alike.

    custom_imports = dict(imports=['freeatm_mm.openmmlab'], allow_failed_imports=False)

With `freeatm_mm.engine` mmengine also begins to read every checkpoint through
`freeatm_mm.checkpoints`, which runs nothing of it. From then on mmengine also finds the package's
own configs: `Config.fromfile('freeatm_mm::mocov2_freeatm.py')`, `_base_ = 'freeatm_mm::...'`.
"""

# ruff: noqa: E402, F401
from freeatm_mm.compat import (
    find_packaged_configs,
    leave_out_notices,
    skip_multimodal_models,
)

find_packaged_configs()
leave_out_notices()
skip_multimodal_models()  # before mmpretrain's models are imported, here or by others

import freeatm_mm.datasets
import freeatm_mm.engine
import freeatm_mm.models
