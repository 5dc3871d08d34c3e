"""mmpretrain's multimodal models aren't needed here and take seconds to import."""

import pytest
import torch

pytest.importorskip('mmpretrain')

from mmengine.registry import init_default_scope  # noqa: E402

from freeatm_mm import compat  # noqa: E402

compat.skip_multimodal_models()
torch.set_num_threads(1)  # the nets are tiny; threads would only get in each other's way


@pytest.fixture(autouse=True)
def mmpretrain_scope():
    """Look names up where configs look them up."""
    init_default_scope('mmpretrain')
