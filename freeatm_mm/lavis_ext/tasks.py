"""LAVIS's retrieval task, and how often a picture is told from its mirror image."""

from __future__ import annotations

from typing import Any

import numpy as np
from lavis.common.registry import registry
from lavis.tasks.retrieval import RetrievalTask

from freeatm_mm.lavis_ext.annotations import mirrored_pairs

__all__ = ['FreeATMRetrievalTask', 'share_told_apart']


def share_told_apart(scores: np.ndarray, mirrored: np.ndarray) -> float:
    """How often a query scores its own pair above the mirrored one.

    Args:
        scores: (N, N) of queries and candidates; query ``i`` belongs to candidate ``i``.
        mirrored: (N,) ints, the number of each pair's mirrored pair.

    Returns:
        A share in [0, 1]; a tie counts half, so that guessing gives 0.5.
    """
    own = np.diagonal(scores)
    other = np.take_along_axis(np.asarray(scores), mirrored[:, None], 1)[:, 0]
    return float(np.mean((own > other) + 0.5 * (own == other)))


@registry.register_task('freeatm_retrieval')
class FreeATMRetrievalTask(RetrievalTask):
    """LAVIS's `retrieval`, with a figure for positions.

    Where the set's annotations name `mirrored` pairs, as the miniature's do
    (`freeatm_mm.miniature.export.export_positions`), `mirror` is added to its figures: the mean of
    `share_told_apart` of both directions, in percent, 50 by guessing.

    Identity can't help there, only position: both have the same objects.
    """

    def evaluation(self, model, data_loader, **kwargs) -> dict[str, Any] | None:
        """LAVIS's figures, with ``mirror`` where the set has mirrored pairs.

        Raises:
            InputError: If the mirrored pairs can't be used.
        """
        self._mirrored = mirrored_pairs(data_loader.dataset.annotation, 'annotations')
        return super().evaluation(model, data_loader, **kwargs)

    def _report_metrics(self, scores_i2t, scores_t2i, txt2img, img2txt) -> dict[str, Any]:
        figures = super()._report_metrics(scores_i2t, scores_t2i, txt2img, img2txt)
        if self._mirrored is not None:
            figures['mirror'] = 50 * (
                share_told_apart(scores_i2t, self._mirrored)
                + share_told_apart(scores_t2i, self._mirrored)
            )
        return figures
