"""The figure that only position can raise."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('lavis')

from lavis.tasks.retrieval import RetrievalTask  # noqa: E402

from freeatm_mm.compat import name_lavis_folder  # noqa: E402
from freeatm_mm.lavis_ext.tasks import FreeATMRetrievalTask, share_told_apart  # noqa: E402

MIRRORED = np.array([1, 0, 3, 2])


class Scores:
    """A model that gives these scores, and a loader of the set that they are of."""

    def __init__(self, to_text, to_image, mirrored=MIRRORED, captions=1):
        self.scores = np.array(to_text, float), np.array(to_image, float)
        count = len(to_text)
        self.loader = SimpleNamespace(
            dataset=SimpleNamespace(
                annotation=[
                    {
                        'caption': ['text'] * captions,
                        **({} if number is None else {'mirrored': int(number)}),
                    }
                    for number in (mirrored if mirrored is not None else [None] * count)
                ],
                txt2img={i: i for i in range(count)},
                img2txt={i: [i] for i in range(count)},
            )
        )

    def compute_sim_matrix(self, loader, task_cfg):
        return self.scores


@pytest.fixture(autouse=True)
def folder(tmp_path):
    name_lavis_folder('output_dir', tmp_path)


def test_share_told_apart_counts_pairs_by_hand():
    scores = np.array(
        [
            [0.9, 0.1, 0.99, 0],  # own above mirrored; another scene doesn't matter
            [0.5, 0.4, 0, 0],  # below
            [0, 0, -100, -100],  # neither was ranked: a guess
            [0, 0, 0.2, 0.3],
        ]
    )  # above
    assert share_told_apart(scores, MIRRORED) == (1 + 0 + 0.5 + 1) / 4
    assert share_told_apart(np.zeros((4, 4)), MIRRORED) == 0.5


def test_mirror_is_added_to_the_figures_of_lavis():
    to_text = np.eye(4)
    to_image = np.eye(4)[MIRRORED]  # always the mirrored picture
    model = Scores(to_text, to_image)
    task = FreeATMRetrievalTask(cfg=None)
    found = task.evaluation(model, model.loader)
    assert found.pop('mirror') == pytest.approx(50)  # 100 % and 0 %
    assert found == RetrievalTask(cfg=None).evaluation(model, model.loader)
    assert (found['txt_r1'], found['img_r1']) == (100, 0)


def test_sets_without_mirrored_pairs_have_the_figures_of_lavis_alone():
    model = Scores(np.eye(4), np.eye(4), mirrored=None)
    found = FreeATMRetrievalTask(cfg=None).evaluation(model, model.loader)
    assert found == RetrievalTask(cfg=None).evaluation(model, model.loader)


@pytest.mark.parametrize('wrong', [{'mirrored': [1, 0, 3, None]}, {'captions': 2}])
def test_half_of_a_mirrored_set_is_refused(wrong):
    model = Scores(np.eye(4), np.eye(4), **wrong)
    with pytest.raises(ValueError, match='one caption and a "mirrored" in every annotation'):
        FreeATMRetrievalTask(cfg=None).evaluation(model, model.loader)
