"""What a checkpoint says of its own pretraining, so that no row of results gets a false name.

Pretrainings note it in what they save (`note_pretraining`); for checkpoints without that note, the
settings saved beside the weights are read, as data: nothing of their text is run. Checkpoints of
mmengine and of LAVIS alike.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from freeatm_mm.addresses import is_address
from freeatm_mm.errors import InputError
from freeatm_mm.files import check_json
from freeatm_mm.methods import METHODS
from freeatm_mm.paper import THRESHOLD

__all__ = [
    'BLIP_FACTS',
    'Origin',
    'blip_origin',
    'blip_scale',
    'describe_blip',
    'note_pretraining',
    'origin_of',
    'plain_settings',
    'settle_label',
]

_CLASSIFIER = 'ImageClassifier'  # of supervised pretraining, and of benchmarks
#: Names that generators go by in tables, and what their pipelines and weights are called.
_GENERATORS = {
    'deepif': r'deepfloyd|\bif(img2img|superresolution)?pipeline|\bif-i',
    'sd15': r'stable[-_]?diffusion[-_]v?1[-_.]?5',
    'miniature': r'\bminiature',
}
#: What chooses patches in the place of masks, by the type of MAE's guide.
_PEERS = {'LossGuide': 'hpm', 'OwnAttentionGuide': 'own_attention'}
#: Options of the model in which a variant differs from Free-ATM, with Free-ATM's own values.
_MODEL = {'negatives': 'all', 'positives': 'own', 'loss': 'nt_xent', 'combine': 'sum'}
#: What that loss makes of SimCLR without masks, which is no baseline of Free-ATM's then.
_WHOLE = {'equation3': 'equation3_whole'}
#: The same of MAE's choice of patches.
_PATCHES = {'ceiling': 0.8, 'schedule': 'linear', 'share_of': 'hidden', 'noise': 'white'}
#: The same of transforms.
_TRANSFORMS = {
    'centred_box': None,
    'trust': False,
    'object_crops': 0,
    'mask_values': 'attention',
    'min_visible': 0.05,
    'one_noun': False,
}
#: What a store's settings hold where its masks are no generator's, and how they are called then.
_OTHER_MASKS = {'regions': 'regions', 'imported': 'imported', 'scenes': 'exact'}
_VARIANT = re.compile(
    'other_masks|box|trust|object_crops|one_noun|normalized|binary|other_nouns|same_noun'
    r'|equation3(_whole)?|hpm|own_attention|green_noise|felzenszwalb|kmeans|regions|imported|exact'
    r'|ceiling_\d+(\.\d+)?'
    r'|mask_[a-z_]{1,40}|(loss|combine|schedule|share_of|min_visible)=[\w.]{1,40}'
)
_LONGEST, _LONGEST_NAME = 2**20, 500


@dataclass(frozen=True)
class Origin:
    """What is known of a pretraining; None where it isn't.

    Attributes:
        method: Such as ``mocov2``.
        regime: ``real``, ``synthetic`` or ``mixed``.
        masks: Whether masks were used, as Free-ATM does; or what a variant does otherwise, by the
            names of `./run miniature` where it has one, such as ``other_masks``, ``trust`` or
            ``ceiling_0.4``; or of BLIP such as ``PTP``.
        epochs: How many were trained.
        generator: Of the images: ``sd15``, ``deepif``, ``miniature``, or the last part of its
            pipeline's name; empty for real ones.
        scale: ``paper`` where the network is the paper's, else ``miniature``.
        seed: Of the run; of BLIP only.
    """

    method: str | None = None
    regime: str | None = None
    masks: bool | str | None = None
    epochs: float | None = None
    generator: str | None = None
    scale: str | None = None
    seed: int | None = None


# --- reading --------------------------------------------------------------------------------------


def origin_of(content: Any) -> Origin:
    """What a checkpoint's content says of its pretraining.

    Args:
        content: From `freeatm_mm.checkpoints.read_state`; of mmengine or of LAVIS.
    """
    if not isinstance(content, Mapping):
        return Origin()
    if isinstance(content.get('config'), Mapping):
        pretraining = 'freeatm_pretrain' in _mapping(content['config'].get('datasets'))
        facts = _mapping(_blip_facts(content) if pretraining else None)
        return Origin(
            'blip',
            **{
                fact: facts[fact]
                for fact, kinds in BLIP_FACTS.items()
                if isinstance(facts.get(fact), tuple(kind for kind in kinds if kind))
            },
        )
    meta = _mapping(content.get('meta'))
    cfg = plain_settings(meta.get('cfg'))
    found = (
        Origin()
        if not cfg
        else Origin(_method(cfg), None, _masks(cfg), None, None, _scale(_mapping(cfg.get('model'))))
    )
    note = _mapping(
        _mapping(_mapping(content.get('message_hub')).get('runtime_info')).get('pretraining')
    )
    kinds = {'method': str, 'regime': str, 'generator': str, 'scale': str}
    told = {key: note[key] for key, kind in kinds.items() if isinstance(note.get(key), kind)}
    masks = note.get('masks')
    if isinstance(masks, str):
        if all(map(_VARIANT.fullmatch, masks[:_LONGEST_NAME].split(', '))):
            told['masks'] = masks
    elif isinstance(masks, bool) and not isinstance(found.masks, str):
        told['masks'] = masks  # what was noted before variants had their names says less
    found = replace(found, **told)
    epoch = meta.get('epoch')
    if (
        type(epoch) is int
        and found.method in (*METHODS, 'supervised')
        and 'max_epochs' in _mapping(cfg.get('train_cfg'))
    ):
        found = replace(found, epochs=epoch)
    if cfg and not note and not _mapping(cfg.get('model')).get('pretrained'):
        roots = [each.get('data_root') for each in _datasets(cfg)]
        made = [each for root in roots for each in _configs(root)]
        found = replace(found, masks=_with_stores(found.masks, made), **_regime(made))
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def plain_settings(text: Any) -> dict[str, Any]:
    """The values of a config that mmengine printed, by their names; what is no plain value is None.

    Nothing is evaluated: mmengine's own reading of such a text would run it.
    """
    if not isinstance(text, str) or len(text) > _LONGEST:
        return {}
    try:
        return {
            target.id: _plain(node.value)
            for node in ast.parse(text).body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}


def _plain(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_plain(part) for part in node.elts]
    if isinstance(node, ast.Dict):
        return {
            key.value: _plain(value)
            for key, value in zip(node.keys, node.values)
            if isinstance(key, ast.Constant)
        }
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        return {keyword.arg: _plain(keyword.value) for keyword in node.keywords if keyword.arg}
    return None


def _method(cfg: Mapping[str, Any]) -> str | None:
    kind = str(_mapping(cfg.get('model')).get('type', '')).split('.')[-1].removeprefix('FreeATM')
    if kind == _CLASSIFIER:
        return 'supervised' if cfg.get('init', 'random') == 'random' else None  # a benchmark's
    return next((name for name, method in METHODS.items() if kind and method.model == kind), None)


def _datasets(cfg: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The data sets that a config trains on, out of whatever wraps them."""
    pending = [_mapping(cfg.get('train_dataloader')).get('dataset')]
    while pending:
        dataset = _mapping(pending.pop())
        inner = dataset.get('datasets') or dataset.get('dataset')
        if inner:
            pending += inner if isinstance(inner, (list, tuple)) else [inner]
        elif dataset:
            yield dataset


def _masks(cfg: Mapping[str, Any]) -> bool | str | None:
    """Whether a config trains with masks: None if it says no data set, a name if otherwise."""
    model = _mapping(cfg.get('model'))
    peer = _peer(model)
    if peer:  # takes no masks, but is no baseline either
        return peer
    datasets = list(_datasets(cfg))
    ours = [
        dataset
        for dataset in datasets  # nobody else's have masks of nouns
        if str(dataset.get('type', '')).split('.')[-1] == 'FreeATMDataset'
        and dataset.get('masks', True) is not False
    ]
    if not ours:
        return _WHOLE.get(str(model.get('loss')), False) if datasets else None
    kinds = [
        str(part.get('type', '')).split('.')[-1] for part in (model, _mapping(model.get('neck')))
    ]
    if not any(kind.startswith('FreeATM') for kind in kinds):
        plain = {_CLASSIFIER, *(method.model for method in METHODS.values())}
        return False if kinds[0] in plain else None  # mmpretrain's own models pass masks over
    variants = {variant for dataset in ours for variant in _variants(dataset)}
    variants |= {
        *_changes(model, _MODEL),
        *_changes(_mapping(model.get('mask_generator')), _PATCHES),
    }
    return ', '.join(sorted(variants)) or True


def _peer(model: Mapping[str, Any]) -> str:
    """What hides patches in the place of masks; empty if masks do, or chance as in MAE."""
    guide = str(_mapping(model.get('guide')).get('type', '')).split('.')[-1]
    noise = _mapping(model.get('mask_generator')).get('noise', 'white')
    return _PEERS.get(guide, '' if noise == 'white' else f'{noise}_noise')


def _variants(dataset: Mapping[str, Any]) -> Iterator[str]:
    """What a data set of ours does otherwise than Free-ATM."""
    if dataset.get('mask_source', 'own') != 'own':
        yield 'other_masks'
    pipeline = dataset.get('pipeline')
    for transform in pipeline if isinstance(pipeline, (list, tuple)) else ():
        yield from _changes(_mapping(transform), _TRANSFORMS)


def _changes(settings: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    """The options that are not Free-ATM's own, by their names."""
    for name, value in own.items():
        given = settings.get(name, value)
        if given is None or given == value:
            continue
        if name == 'centred_box':
            yield 'box'
        elif name == 'ceiling':
            yield f'ceiling_{given:g}' if isinstance(given, (int, float)) else 'ceiling'
        elif name in ('trust', 'object_crops', 'one_noun'):
            yield name
        elif name in ('negatives', 'positives', 'mask_values') or given == 'equation3':
            yield str(given)
        else:
            yield f'{name}={given}'


def _with_stores(
    masks: bool | str | None, configs: Iterable[Mapping[str, Any] | None]
) -> bool | str | None:
    """Add to a variant's name what the stores say of their masks.

    Args:
        masks: From the config of the run.
        configs: The stores' settings.
    """
    if not masks or masks in _WHOLE.values():  # which read none
        return masks
    variants = set() if masks is True else {*masks.split(', ')}
    pending = list(configs)
    while pending:
        config = _mapping(pending.pop())
        if isinstance(config.get('sources'), list):  # a selection of other stores
            pending += [_mapping(source).get('config') for source in config['sources']]
        for entry, name in _OTHER_MASKS.items():
            if entry in config:
                variants.add(str(_mapping(config[entry]).get('masks_from', name)))
                break
        else:
            variants |= {f'mask_{option}' for option in _mapping(config.get('masks'))}
    return ', '.join(sorted(variants)) or True


def _scale(model: Mapping[str, Any]) -> str | None:
    """Whether a backbone is the paper's: ResNet-50, or ViT-B at 224 pixels."""
    backbone = _mapping(model.get('backbone'))
    kind = str(backbone.get('type', '')).split('.')[-1]
    if not kind:
        return None
    if 'ResNet' in kind:
        same = (
            backbone.get('depth') == 50
            and backbone.get('base_channels', 64) == 64
            and backbone.get('stem_channels', 64) in (None, 64)
        )
    else:
        same = backbone.get('arch', 'b') in ('b', 'base') and backbone.get('img_size', 224) == 224
    return 'paper' if same else 'miniature'


def _generator(config: Mapping[str, Any]) -> str | None:
    """What made a store's images; None where it doesn't say, as in a store of photographs."""
    pipeline = config.get('pipeline')
    if not isinstance(pipeline, str) or not pipeline.strip():
        return None
    text = f'{pipeline} {config.get("pipeline_class", "")}'.lower()
    for name, pattern in _GENERATORS.items():
        if re.search(pattern, text):
            return name
    return pipeline.rstrip('/').split('/')[-1]


def _configs(paths: Any) -> list[Mapping[str, Any] | None]:
    """What made the images of a store or a folder, or of each of several."""
    return [_config(path) for path in (paths if isinstance(paths, (list, tuple)) else [paths])]


def _config(path: Any) -> Mapping[str, Any] | None:
    """What made a store's images; empty for a folder of plain ones; None where it can't be told.

    Raises:
        UnreachableStoreError: If its server can't be reached, which says nothing of the store.
    """
    from freeatm_mm.store import Store, StoreError
    from freeatm_mm.store.errors import UnreachableStoreError

    if not is_address(path):
        if not isinstance(path, str) or not Path(path).is_dir():
            return None
        if not Path(path, 'store.json').exists():
            return {}
    try:
        return Store(path).config or None
    except UnreachableStoreError:
        raise
    except (StoreError, OSError, ValueError):
        return None


def _regime(configs: Iterable[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Regime and generator of images from sources of these settings; nothing if one is unknown.

    An image folder has empty settings. Those of a store to whose images masks were added name the
    pipeline that looked at them, not what they come from.
    """
    generators = set()
    pending = list(configs)
    while pending:
        config = pending.pop()
        if config and isinstance(config.get('sources'), list):  # a selection of other stores
            pending += [_mapping(source).get('config') or None for source in config['sources']]
            continue
        if config is None or config and not {'pipeline', 'scenes'} & set(config):
            return {}
        if 'levels' in config:
            return {}
        # The miniature's composed scenes stand for real images.
        generators.add(_generator(config) or '')
    if not generators:
        return {}
    regime = 'real' if generators == {''} else 'mixed' if '' in generators else 'synthetic'
    return {'regime': regime, 'generator': ' and '.join(sorted(generators - {''}))}


def _after(images: dict[str, Any], regime: str | None, generator: str | None) -> dict[str, Any]:
    """Regime and generator of a run that starts from another's weights; nothing if unknown."""
    if not images or regime is None:
        return {}
    if regime == images['regime']:
        return images
    generators = {generator or '', images['generator']} - {''}
    return {'regime': 'mixed', 'generator': ' and '.join(sorted(generators))}


# --- writing --------------------------------------------------------------------------------------


def note_pretraining(runner: Any) -> None:
    """Let a run's checkpoints say what it pretrains on; for a hook's ``before_train``.

    Args:
        runner: mmengine's, with its data set built.
    """
    sources = list(_sources_of(getattr(runner.train_dataloader, 'dataset', None)))
    if not any(sources):
        return
    cfg, made = runner.cfg, [_made(source) for source in sources]
    images, masks = _regime(made), _with_stores(_masks(cfg), made)
    earlier = _mapping(cfg.get('model')).get('pretrained')
    if earlier and '://' not in str(earlier) and Path(earlier).is_file():
        from freeatm_mm.checkpoints import read_state

        before = origin_of(read_state(earlier))
        images = _after(images, before.regime, before.generator)
        if isinstance(before.masks, str):  # a variant's weights make no plain Free-ATM
            own = masks.split(', ') if isinstance(masks, str) else []
            masks = ', '.join(sorted({*before.masks.split(', '), *own}))
    origin = Origin(_method(cfg), masks=masks, scale=_scale(cfg.model), **images)
    runner.message_hub.update_info(
        'pretraining', {key: value for key, value in asdict(origin).items() if value is not None}
    )


def _sources_of(dataset: Any) -> Iterator[Any]:
    """The stores and image folders of a built data set, wrapped or not; None for other data."""
    inner = getattr(dataset, 'datasets', None) or getattr(dataset, 'dataset', None)
    if hasattr(dataset, 'sources'):
        yield from dataset.sources
    elif inner is None:
        yield None
    else:
        for part in inner if isinstance(inner, (list, tuple)) else [inner]:
            yield from _sources_of(part)


def _made(source: Any) -> Mapping[str, Any] | None:
    """What made an open source's images, as of `_config`."""
    from freeatm_mm.store import Store

    if isinstance(source, Store):
        return source.config or None
    return None if source is None else {}


# --- labelling ------------------------------------------------------------------------------------


def settle_label(
    origin: Origin,
    said: Mapping[str, Any],
    source: str | Path,
    needed: Sequence[str] = ('method', 'regime', 'masks'),
) -> dict[str, Any]:
    """The label of a row: what the checkpoint says, and what the command says where that is silent.

    A name of a variant in place of ``masks`` (``exact``, ``paper boxes``) goes with any checkpoint
    that was pretrained with masks, and another name for a generator with any that the tables don't
    know. Checkpoints of BLIP say themselves which variant they are: another name goes with a
    variant alone, and ``PTP`` with none.

    Args:
        origin: From `origin_of`, or of the facts of `blip_origin`.
        said: Fields of `Origin` from the command line; None where nothing was said.
        source: The checkpoint, for messages.
        needed: What one of the two must say.

    Returns:
        The fields of `Origin` without those that nobody knows; ``generator`` is empty for real
        images.

    Raises:
        InputError: If the two contradict each other, or neither says what is needed.
    """
    label: dict[str, Any] = {}
    for field in fields(Origin):
        key, known, wanted = field.name, getattr(origin, field.name), said.get(field.name)
        if wanted is not None and known is not None and not _agree(origin, key, wanted):
            raise InputError(
                f'{source} says of itself that its {key} is {known!r}, not '
                f'{wanted!r}: leave --{key} out, or name another checkpoint'
            )
        label[key] = known if wanted is None else wanted
    if label['regime'] == 'real':
        label['generator'] = ''
    missing = [key for key in needed if label[key] is None]
    if missing:
        raise InputError(
            f'{source} does not say its {" and ".join(missing)}: say '
            f'{" ".join(f"--{key}" for key in missing)}, to name the row'
        )
    label['generator'] = label['generator'] or ('' if label['regime'] == 'real' else 'unknown')
    label['epochs'] = label['epochs'] or 0
    return {key: value for key, value in label.items() if value is not None}


def _agree(origin: Origin, key: str, wanted: Any) -> bool:
    known = getattr(origin, key)
    if known == wanted:
        return True
    if key == 'masks' and isinstance(wanted, str):
        if origin.method == 'blip':
            return isinstance(known, str) and wanted != 'PTP'
        return known is not False
    if key == 'generator':
        return known not in _PAPERS and wanted not in _GENERATORS
    return False


# --- BLIP, trained by LAVIS ----------------------------------------------------------------------

#: What a checkpoint of BLIP notes of its pretraining, and of which type.
BLIP_FACTS = {
    'regime': (str, None),
    'masks': (bool, str, None),
    'generator': (str, None),
    'seed': (int, None),
    'epochs': (float, None),
    'scale': (str, None),
}

#: The paper's two generators; a checkpoint of theirs goes by no other name.
_PAPERS = ('sd15', 'deepif')


def _train_part(data: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    return _mapping(_mapping(data.get(part)).get('train'))


def _blip_masks(data: Mapping[str, Any], model: Mapping[str, Any], stores: str) -> bool | str:
    """False, True or the name of a variant; `stores` is what these say of their masks."""
    from freeatm_mm.ops.position import PRESETS

    options = dict(_train_part(data, 'text_processor'))
    preset = str(options.pop('preset', None) or 'freeatm')
    if options.pop('name', 'freeatm_caption') != 'freeatm_caption':
        preset = 'none'
    options.pop('prompt', None)
    flips = _train_part(data, 'vis_processor').get('hflip')
    flips = True if flips is None else flips
    flipped = [] if flips == (preset != 'ptp') else [f'hflip={flips}']  # PTP trains without
    info = _mapping(data.get('build_info'))
    # A caption file's objects are boxes, and so are all detections.
    boxes = bool(info.get('detections') or info.get('annotations'))
    masked = bool(info.get('store') and not info.get('detections')) or not boxes
    threshold = info.get('threshold')
    if masked and threshold is not None and float(threshold) != THRESHOLD:
        options['threshold'] = f'{float(threshold):g}'
    loss = float(model.get('mask_loss') or 0)
    further = [*flipped, *([f'mask_loss={loss:g}'] if loss else [])]
    if model.get('mask_layer') is not None:
        further.append(f'mask_layer={model["mask_layer"]}')
    source = [stores or 'masks'] if masked and (stores or boxes) else []
    source += ['boxes'] if boxes else []
    if preset == 'none':
        if loss and 'threshold' in options:
            further.append(f'threshold={options["threshold"]}')
        return ', '.join(['no prompts', *(source if loss else []), *further]) if further else False
    changes = [
        f'{name}={value}'
        for name, value in sorted(options.items())
        if value is not None and value != getattr(PRESETS.get(preset), name, None)
    ]
    changes += further
    if preset == 'ptp':
        parts = ['PTP', *dict.fromkeys(['masks', *source] if masked else []), *changes]
    else:
        parts = ['Free-ATM', *source, *changes]
    return True if parts == ['Free-ATM'] else ', '.join(parts)


def blip_scale(model: Mapping[str, Any]) -> str:
    """'paper' for a model of the sizes of LAVIS's, else 'miniature'."""
    return 'miniature' if model.get('vit') or model.get('bert') else 'paper'


def describe_blip(
    config: Mapping[str, Any],
    stores: Sequence[Mapping[str, Any] | None] | None = None,
    earlier: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a pretraining's config says of its row.

    Args:
        config: The whole config, as `to_dict` gives it.
        stores: What its stores say made them; by default read where the config says they are.
        earlier: What the checkpoint that it starts from says, where it starts from one.

    Returns:
        `BLIP_FACTS` but for the epochs, which are a checkpoint's; None for what isn't known.
    """
    data = _mapping(_mapping(config.get('datasets')).get('freeatm_pretrain'))
    model, info = _mapping(config.get('model')), _mapping(data.get('build_info'))
    if stores is None:
        stores = _configs(info['store']) if info.get('store') else []
    made = [store or None for store in stores]  # a store may say nothing
    others = _mapping(config.get('datasets')).keys() - {'freeatm_pretrain'}  # of any images
    images = _regime(
        [*made, *([{}] if info.get('annotations') else []), *([None] if others else [])]
    )
    if model.get('pretrained'):
        before = _mapping(earlier)
        images = _after(images, before.get('regime'), before.get('generator'))
    told = _with_stores(True, made)
    if made and all(store and 'scenes' in store for store in made):
        told = 'exact masks'  # of composed scenes, as the miniature's world has them
    return {
        'regime': images.get('regime'),
        'masks': _blip_masks(data, model, told if isinstance(told, str) else ''),
        'generator': images.get('generator'),
        'seed': _mapping(config.get('run')).get('seed', 0),
        'scale': blip_scale(model),
    }


def _blip_facts(content: Mapping[str, Any]) -> Any:
    """What a checkpoint of BLIP notes of its pretraining, else what its config says; or None."""
    known, config = content.get('pretraining'), _mapping(content.get('config'))
    if known is None and 'freeatm_pretrain' in _mapping(config.get('datasets')):
        epoch = content.get('epoch')
        epochs = float(epoch + 1) if type(epoch) is int else None
        return {**describe_blip(config), 'epochs': epochs}
    return known


def blip_origin(path: str | Path) -> dict[str, Any] | None:
    """What a checkpoint of a pretraining, or of a fine-tuning of one, says of the pretraining.

    Returns:
        `BLIP_FACTS`, None where it doesn't say; None for a checkpoint of others.

    Raises:
        InputError: If it can't be read.
    """
    if Path(path).suffix == '.safetensors':
        return None
    from freeatm_mm.checkpoints import read_state

    content = read_state(path)
    if not isinstance(content, Mapping):
        return None
    known = _blip_facts(content)
    if known is None:
        return None
    check_json(known, BLIP_FACTS, f'{path}: pretraining')
    return dict(known)
