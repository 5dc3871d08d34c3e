"""The variants of a pretraining that are compared with each other: one entry an arm."""

from __future__ import annotations

from dataclasses import dataclass

from freeatm_mm.miniature.layout import Layout

__all__ = ['ARMS', 'Arm']


@dataclass(frozen=True)
class Arm:
    """A variant of a pretraining.

    Attributes:
        masks: What the results call its masks.
        options: Changes to the config, with the places of transforms and the seed in braces. An arm
            makes sense for methods whose config has those of ``model`` that it changes.
        text: What it is, for --help.
        needs: An entry of ``model`` that a method must have besides.
        regions: What ``freeatm edit regions`` is told, where the masks are others of the same
            images, with the config, the seed and the checkpoint of the seed's baseline in braces.
    """

    masks: bool | str
    options: tuple[str, ...] = ()
    text: str = ''
    needs: str = ''
    regions: tuple[str, ...] = ()

    @property
    def follows_baseline(self) -> bool:
        """Whether it takes the checkpoint that the baseline of its seed ends with."""
        return any('{baseline}' in word for word in self.regions)

    def suits(self, layout: Layout) -> bool:
        """Whether a method has what the arm changes."""
        keys = [option.split('=')[0] for option in self.options] + [self.needs]
        return all(layout.says(key) for key in keys if key.startswith('model.'))

    def changes(self, layout: Layout, seed: int) -> list[str]:
        """Its options for a method's config."""
        pipeline = 'train_dataloader.dataset.pipeline.'
        places = {
            'loading': layout.loading,
            'packing': layout.packing,
            'viewing': layout.viewing,
        }
        return [
            option.format(seed=seed, **{key: f'{pipeline}{n}' for key, n in places.items()})
            for option in self.options
        ]


ARMS: dict[str, Arm] = {
    'baseline': Arm(False, (), 'without masks'),
    'freeatm': Arm(True, (), 'with masks'),
    'normalized': Arm(
        'normalized',
        ('{packing}.mask_values=normalized',),
        'masks stretched to [0, 1], which the paper does not do',
    ),
    'other_nouns': Arm(
        'other_nouns',
        ('model.negatives=other_nouns',),
        "keys of the query's own noun are no negatives",
    ),
    'same_noun': Arm(
        'same_noun',
        ('model.positives=same_noun',),
        "keys of the query's own noun are positives too",
    ),
    'same_noun_box': Arm(
        'same_noun_box',
        ('model.positives=same_noun', '{loading}.centred_box=own'),
        'a control, same_noun with the masks of box: nouns without places',
    ),
    'same_noun_whole': Arm(
        'same_noun_whole',
        ('model.positives=same_noun', '{loading}.centred_box=1.0'),
        'a control, same_noun with the whole view for each noun: nouns without any place or mask',
    ),
    'same_noun_label': Arm(
        'same_noun_label',
        (
            'model.positives=same_noun',
            '{loading}.centred_box=1.0',
            '{packing}.one_noun=True',
        ),
        'the same with one of the nouns, drawn anew each time: nouns as labels of whole images',
    ),
    'binary': Arm(
        'binary', ('{packing}.mask_values=binary',), 'masks of 0 and 1, the foreground alone'
    ),
    'trust': Arm(
        'trust',
        ('{loading}.trust=True',),
        "an instance's loss is weighted by the trust in its mask",
        'model.negatives',
    ),
    'other_masks': Arm(
        'other_masks',
        (
            'train_dataloader.dataset.mask_source=other',
            'train_dataloader.dataset.mask_source_seed={seed}',
        ),
        'a control, each image has the masks of another one',
    ),
    'box': Arm(
        'box',
        ('{loading}.centred_box=own',),
        'a control, in place of each mask a box of its area in the centre',
    ),
    'other_binary': Arm(
        'other_binary',
        (
            'train_dataloader.dataset.mask_source=other',
            'train_dataloader.dataset.mask_source_seed={seed}',
            '{packing}.mask_values=binary',
        ),
        'other_masks, of 0 and 1',
    ),
    'box_binary': Arm(
        'box_binary',
        ('{loading}.centred_box=own', '{packing}.mask_values=binary'),
        'box, of 0 and 1',
    ),
    'object_crops': Arm(
        'object_crops',
        ('{viewing}.object_crops=1.0',),
        'both views are cropped around one of the nouns, drawn anew each time',
        'model.negatives',
    ),
    'object_crops_whole': Arm(
        'object_crops_whole',
        ('{viewing}.object_crops=1.0', '{packing}.with_masks=False'),
        'a control, the views of object_crops pooled whole, as without masks',
        'model.negatives',
    ),
    'plus': Arm(
        'plus',
        (
            'model.positives=same_noun',
            '{loading}.trust=True',
            '{viewing}.object_crops=1.0',
            '{packing}.mask_values=normalized',
        ),
        'same_noun, trust, normalized and object_crops together',
    ),
    'same_noun_crops': Arm(
        'same_noun_crops',
        ('model.positives=same_noun', '{viewing}.object_crops=1.0'),
        'same_noun and object_crops together, the options of plus without trust and normalized',
    ),
    'felzenszwalb': Arm(
        'felzenszwalb',
        (),
        'masks from colour segmentation, as in DetCon, on the same images',
        'model.negatives',
        ('--masks-from', 'felzenszwalb'),
    ),
    'kmeans': Arm(
        'kmeans',
        (),
        "masks from k-means of the features of the seed's own baseline, as in ODIN",
        'model.negatives',
        ('--masks-from', 'kmeans', '--seed', '{seed}', '--config', '{config}')
        + ('--checkpoint', '{baseline}'),
    ),
    'inside_first': Arm(
        'inside_first',
        (
            'model.mask_generator.share_of=foreground',
            'model.mask_generator.ceiling=1.0',
            'model.combine=max',
            '{packing}.mask_values=normalized',
        ),
        'beta is a share of the foreground and grows to 1: objects from the inside to the whole',
    ),
    'hpm': Arm(
        'hpm',
        ('model.guide.type=LossGuide', 'model.mask_generator.ceiling=0.5'),
        'patches by a learned predictor of their difficulty, as in HPM, without masks',
    ),
    'own_attention': Arm(
        'own_attention',
        ('model.guide.type=OwnAttentionGuide',),
        "patches by the encoder's own attention, as in AttMask, without masks",
    ),
    'green_noise': Arm(
        'green_noise',
        ('model.mask_generator.noise=green', 'model.mask_generator.ceiling=0'),
        'patches by green noise, as in ColorMAE, without masks',
    ),
    **{
        f'ceiling_{share}': Arm(
            f'ceiling_{share}',
            (f'model.mask_generator.ceiling={share}',),
            f'beta grows to {share}, not 0.8',
        )
        for share in ('0', '0.4')
    },
}
"""The arms by the names that the tool gives them."""
