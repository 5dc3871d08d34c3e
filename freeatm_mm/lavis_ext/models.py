"""BLIP for pretraining and for retrieval: LAVIS's own, with weights and tokenizer from local files.

The computations are LAVIS's, bit for bit. What is added: where tokenizer and weights come from,
sizes other than base and large, checkpoints that are checked when loaded, and a count of the texts
that `max_txt_len` cuts.
"""

from __future__ import annotations

import io
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lavis.common.dist_utils import get_world_size
from lavis.common.registry import registry
from lavis.common.utils import get_abs_path
from lavis.models.base_model import concat_all_gather
from lavis.models.blip_models.blip_pretrain import BlipPretrain
from lavis.models.blip_models.blip_retrieval import BlipRetrieval
from lavis.models.med import XBertEncoder, XBertLMHeadDecoder
from lavis.models.vit import VisionTransformerEncoder, interpolate_pos_embed
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from transformers import BertConfig
from transformers.activations import ACT2FN

from freeatm_mm import compat
from freeatm_mm.checkpoints import check_finite, fit, load_weights
from freeatm_mm.errors import InputError, MissingFileError, counted, listed, one_sentence
from freeatm_mm.lavis_ext.grounding import (
    attention_of_nouns,
    cross_layers,
    mask_consistency,
    places_in_batch,
    record_matching,
)
from freeatm_mm.lavis_ext.settings import (
    Check,
    check_entries,
    check_values,
    count,
    number,
    plain,
    text,
    truth,
)
from freeatm_mm.lavis_ext.tokenizer import (
    CountingTokenizer,
    load_tokenizer,
    no_nouns,
    no_texts,
)

__all__ = [
    'FreeATMBlipPretrain',
    'FreeATMBlipRetrieval',
    'complete_momentum',
    'load_checked',
]

_CONFIGS = Path(__file__).parent / 'configs'
_MOMENTUM = ('visual_encoder', 'text_encoder', 'vision_proj', 'text_proj')
_QUEUES = ('image_queue', 'text_queue', 'idx_queue', 'queue_ptr')
#: Entries of `model` that its default yaml leaves out.
_FURTHER_ENTRIES = (
    'model_type',
    'vit',
    'bert',
    'vit_layer_norm_epsilon',
    'vit_drop_path_rate',
    'load_pretrained',
)
_EVALUATED_TOKENS = 35  # of each text, in LAVIS's `compute_sim_matrix`
_WIDEST, _DEEPEST = 1 << 14, 1000  # so that a typo is refused before memory is asked for
_VALUES: dict[str, Check] = {
    **dict.fromkeys(
        (
            'tokenizer',
            'text_weights',
            'image_weights',
            'pretrained',
            'finetuned',
            'vit_type',
            'med_config_path',
        ),
        text,
    ),
    'image_size': count(1, 1 << 13),
    'queue_size': count(1, 1 << 24),
    'embed_dim': count(1, _WIDEST),
    'max_txt_len': count(3, 1 << 16),
    'vit_ckpt_layer': count(0),
    'mask_layer': count(0),
    'mask_loss': number(0),
    'vit_layer_norm_epsilon': number(),
    **dict.fromkeys(('momentum', 'alpha', 'vit_drop_path_rate'), number(0, 1)),
    **dict.fromkeys(
        ('vit_grad_ckpt', 'load_pretrained', 'load_finetuned', 'negative_all_rank'), truth
    ),
}
_VIT_VALUES: dict[str, Check] = {
    **dict.fromkeys(('embed_dim', 'num_heads', 'patch_size'), count(1, _WIDEST)),
    'depth': count(1, _DEEPEST),
    'mlp_ratio': number(0, 64, above=True),
}
_BERT_VALUES: dict[str, Check] = {
    **dict.fromkeys(('hidden_size', 'num_attention_heads'), count(1, _WIDEST)),
    **dict.fromkeys(('intermediate_size', 'max_position_embeddings'), count(1, 1 << 16)),
    'num_hidden_layers': count(1, _DEEPEST),
    'type_vocab_size': count(1, 1 << 16),
    'layer_norm_eps': number(0, above=True),
    **dict.fromkeys(('pad_token_id', 'chunk_size_feed_forward'), count(0)),
    'initializer_range': number(0),
    'hidden_act': lambda name: None if name in ACT2FN else f'one of {", ".join(ACT2FN)}',
    **dict.fromkeys(('hidden_dropout_prob', 'attention_probs_dropout_prob'), number(0, 1)),
}
#: Entries of the text model's config that follow from the tokenizer and the image encoder.
_BERT_DERIVED = {'vocab_size', 'encoder_width'}
#: What LAVIS's text model reads of its config.
_BERT_ENTRIES = {*_BERT_VALUES, 'add_cross_attention', 'add_type_embeddings', *_BERT_DERIVED}
_VIT_SIZES = {
    'base': dict(embed_dim=768, depth=12, num_heads=12),
    'large': dict(embed_dim=1024, depth=24, num_heads=16),
}


# --- weights --------------------------------------------------------------------------------------


def complete_momentum(state: dict[str, Tensor], source: str | Path) -> int:
    """Add momentum encoders to a checkpoint that LAVIS wrote, which leaves them out, in place.

    LAVIS keeps no parameter that takes no gradient (`RunnerBase._save_checkpoint`), so that its
    pretraining checkpoints can't be loaded for retrieval. The online weights are the best guess; a
    warning tells of them.

    Args:
        state: The weights.
        source: Where they come from, for the warning.

    Returns:
        How many tensors were added; 0 where the momentum encoders are there.
    """
    copied = {
        name.replace(f'{part}.', f'{part}_m.', 1): value
        for part in _MOMENTUM
        for name, value in state.items()
        if name.startswith(f'{part}.')
    }
    missing = {name: value for name, value in copied.items() if name not in state}
    state.update(missing)
    if missing:
        logging.warning(
            '%s holds no momentum encoders, as LAVIS writes it; %d tensors are copies '
            'of the online ones',
            source,
            len(missing),
        )
    return len(missing)


def load_checked(
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: str | Path,
    may_lack: Iterable[str] = (),
    may_hold: Iterable[str] = (),
) -> Counter:
    """Load weights and make sure that nothing is missing.

    Position embeddings of another image size are interpolated, as LAVIS does. Queues of another
    length are left as they are in the model: they fill up anew.

    Args:
        model: The model.
        state: The weights.
        source: Where they come from, for messages.
        may_lack: Names that the weights may lack.
        may_hold: Beginnings of names that the model may have no use for.

    Returns:
        How many tensors were `loaded`, `interpolated`, `lacking`, `unused` and `kept` (queues of
        another length).

    Raises:
        ValueError: If weights are missing, left over, of another shape, NaN or infinite; names the
            first ones.
    """
    check_finite(state, source)
    state, own = dict(state), model.state_dict()
    if 'ptr_queue' in state:  # its name in the original code of BLIP's retrieval
        state.setdefault('queue_ptr', state.pop('ptr_queue'))
    counts: Counter[str] = Counter()
    for name, value in own.items():
        part, _, last = name.rpartition('.')
        if last == 'pos_embed' and name in state and _of_another_size(state[name], value):
            state[name] = interpolate_pos_embed(state[name], model.get_submodule(part))
            counts['interpolated'] += 1
    if any(
        name in state and name in own and state[name].shape != own[name].shape for name in _QUEUES
    ):
        for name in set(_QUEUES) & set(own):
            state[name] = own[name]
            counts['kept'] += 1
    match, may_lack, may_hold = fit(model, state), tuple(may_lack), tuple(may_hold)
    for what, names in (
        ('lacks', [name for name in match.missing if name not in may_lack]),
        (
            'holds for no part of the model',
            [name for name in match.unused if not name.startswith(may_hold)],
        ),
        ('has in another shape', list(match.misshapen)),
    ):
        if names:
            raise ValueError(f'{source} does not fit the model: it {what} {listed(names)}')
    match.load(model)
    counts['lacking'] = len(match.missing)
    counts['unused'] = len(match.unused)
    counts['loaded'] = match.matched - counts['kept']
    logging.info(
        "%s: %d of %d tensors loaded (%d interpolated), %d of the model's left as they "
        'were, %d unused',
        source,
        counts['loaded'],
        len(own),
        counts['interpolated'],
        counts['lacking'] + counts['kept'],
        counts['unused'],
    )
    return counts


def _of_another_size(given: Tensor, own: Tensor) -> bool:
    """Whether position embeddings (1, 1 + P, D) are of square images of another size alone."""
    return (
        given.is_floating_point()
        and given.ndim == 3
        and given.shape != own.shape
        and given.shape[::2] == own.shape[::2]
        and given.shape[1] > 1
        and math.isqrt(given.shape[1] - 1) ** 2 == given.shape[1] - 1
    )


# --- parts ----------------------------------------------------------------------------------------


def _checked(kind: Any, cfg: Any) -> DictConfig:
    """A config's `model`; entries that are null or left out are the default yaml's.

    Raises:
        InputError: If it has an entry that nothing reads, such as a mistyped one, or a value that
            can't be used.
    """
    given = {name: value for name, value in plain(cfg, 'model').items() if value is not None}
    defaults = OmegaConf.load(kind.PRETRAINED_MODEL_CONFIG_DICT['base']).model
    check_entries(
        given,
        {*defaults, *_FURTHER_ENTRIES},
        'model',
        {
            name: 'freeatm_blip_pretrain starts from model.pretrained, or from text_weights and '
            'image_weights'
            for name in ('finetuned', 'load_finetuned')
        },
    )
    check_values(given, _VALUES, 'model')
    if 'tokenizer' not in given:
        raise InputError("model.tokenizer must be a folder with BERT's vocab.txt")
    usual = {name: value for name, value in defaults.items() if value is not None}
    return OmegaConf.create({**usual, **given})


def _image_encoder(cfg) -> VisionTransformerEncoder:
    """LAVIS's image encoder, of any size, with random weights.

    Raises:
        InputError: If there is no such type, or `vit` has an unknown entry or sizes that don't go
            together.
    """
    if cfg.get('vit_type', 'base') not in _VIT_SIZES:
        raise InputError(f'vit_type must be one of {", ".join(_VIT_SIZES)}, got {cfg.vit_type!r}')
    if cfg.get('vit_grad_ckpt') and not cfg.get('vit_ckpt_layer'):
        raise InputError(
            'vit_grad_ckpt saves no memory with vit_ckpt_layer 0: set that to how '
            'many of the last layers are computed again, up to all'
        )
    if cfg.get('vit_ckpt_layer') and not cfg.get('vit_grad_ckpt'):
        raise InputError(
            'model.vit_ckpt_layer has no effect without model.vit_grad_ckpt=True: set that, or '
            'vit_ckpt_layer=0'
        )
    changes = {
        name: value
        for name, value in plain(cfg.get('vit'), 'model.vit').items()
        if value is not None
    }
    check_entries(changes, _VIT_VALUES, 'model.vit')
    check_values(changes, _VIT_VALUES, 'model.vit')
    sizes = {**_VIT_SIZES[cfg.get('vit_type', 'base')], 'patch_size': 16, **changes}
    for whole, part in (('embed_dim', 'num_heads'), ('image_size', 'patch_size')):
        size = cfg.get('image_size', 384) if whole == 'image_size' else sizes[whole]
        if size % sizes[part]:
            raise InputError(
                f'model: {whole} {size} must be a multiple of vit.{part} {sizes[part]}'
            )
    # Not by LAVIS's `from_config`: its large ViT drops paths at a rate of 0.1 whatever it is told.
    usual_rate = 0.1 if cfg.get('vit_type', 'base') == 'large' else 0
    epsilon = cfg.get('vit_layer_norm_epsilon', -1)
    encoder = VisionTransformerEncoder(
        img_size=cfg.get('image_size', 384),
        drop_path_rate=cfg.get('vit_drop_path_rate', usual_rate),
        use_grad_checkpointing=cfg.get('vit_grad_ckpt', False),
        ckpt_layer=cfg.get('vit_ckpt_layer', 0),
        norm_layer=None if epsilon == -1 else partial(nn.LayerNorm, eps=epsilon),
        **sizes,
    )
    encoder.vision_width = sizes['embed_dim']
    return encoder


def _bert_config(
    cfg, image_encoder: VisionTransformerEncoder, vocabulary: int, reads: int = 0
) -> BertConfig:
    """The text model's sizes: LAVIS's file, changed by `bert`, fitting tokenizer and images.

    Args:
        cfg: A config's `model`.
        image_encoder: The image encoder.
        vocabulary: How many tokens there are.
        reads: So many tokens are read of a text whatever `max_txt_len` is.

    Raises:
        InputError: If an entry can't be used, or texts are longer than the model reads.
    """
    config: Any = BertConfig.from_json_file(get_abs_path(cfg.get('med_config_path')))
    changes = plain(cfg.get('bert'), 'model.bert')
    check_entries(changes, _BERT_ENTRIES, 'model.bert')
    check_values(changes, _BERT_VALUES, 'model.bert')
    if _BERT_DERIVED & changes.keys():
        raise InputError(
            'model.bert: vocab_size and encoder_width follow from the tokenizer and '
            'the image encoder: leave them out'
        )
    config.update({name: value for name, value in changes.items() if value is not None})
    if config.hidden_size % config.num_attention_heads:
        raise InputError(
            f'model: bert.hidden_size {config.hidden_size} must be a multiple of '
            f'bert.num_attention_heads {config.num_attention_heads}'
        )
    config.vocab_size = vocabulary
    config.encoder_width = image_encoder.vision_width
    needed = cfg.get('max_txt_len', 30)
    if config.max_position_embeddings < needed:
        raise InputError(
            f"max_txt_len {needed} is more than the text model's "
            f'{config.max_position_embeddings} positions'
        )
    if config.max_position_embeddings < reads:
        raise InputError(
            f'model.bert.max_position_embeddings must be at least {reads}, as LAVIS reads so many '
            f'tokens where it evaluates retrieval, got {config.max_position_embeddings}'
        )
    return config


class _WithTokenizer:
    """What the two models share: a tokenizer that is handed over, and its counts."""

    tokenizer: CountingTokenizer
    visual_encoder_m: nn.Module
    #: What each item that it is trained with must hold.
    NEEDED: tuple[str, ...] = ('image', 'text_input')

    def __init__(self, *args, tokenizer: CountingTokenizer, **kwargs) -> None:
        # LAVIS asks for the tokenizer in the constructor, by a method without arguments.
        self._tokenizer_given = tokenizer
        super().__init__(*args, **kwargs)
        del self._tokenizer_given
        compat.free_copied_checkpointing(self.visual_encoder_m)

    def init_tokenizer(self) -> CountingTokenizer:
        """The tokenizer, where LAVIS would fetch one."""
        return self._tokenizer_given

    def take_text_counts(self) -> Counter:
        """Texts read since the last call, those empty, those cut at `max_txt_len`, tokens lost."""
        counts, self.tokenizer.counts = self.tokenizer.counts, no_texts()
        return counts


# --- models ---------------------------------------------------------------------------------------


@registry.register_model('freeatm_blip_pretrain')
class FreeATMBlipPretrain(_WithTokenizer, BlipPretrain):
    """LAVIS's `blip_pretrain` with tokenizer and weights from local files, or random weights.

    Its checkpoints also hold an `idx_queue` without entries (-100), so that `blip_retrieval` finds
    everything it has: no image of the pretraining's queues is one of the fine-tuning's.

    With `mask_loss` above 0, batches must hold masks (`mask_grid` of `freeatm_pretrain`), and the
    loss has a further part, `loss_mask`: in the pass that matches the true pairs, each noun's
    cross-attention is to lie on its object (`freeatm_mm.lavis_ext.grounding.mask_consistency`).

    Args:
        tokenizer: From `freeatm_mm.lavis_ext.tokenizer.load_tokenizer`.
        mask_loss: Weight of that part; 0 for LAVIS's losses, bit for bit.
        mask_layer: Number of the layer whose cross-attention it is, from 0; if not given, the one
            at two thirds of the depth (8 of 12).
        *args: As LAVIS's.
        **kwargs: As LAVIS's.
    """

    PRETRAINED_MODEL_CONFIG_DICT = {'base': str(_CONFIGS / 'blip_pretrain_base.yaml')}

    def __init__(
        self,
        *args,
        tokenizer: CountingTokenizer,
        mask_loss: float = 0.0,
        mask_layer: int | None = None,
        **kwargs,
    ) -> None:
        super().__init__(*args, tokenizer=tokenizer, **kwargs)
        self.register_buffer('idx_queue', torch.full((1, self.queue_size), -100))
        layers = cross_layers(self.text_encoder)
        if mask_layer is not None and not mask_loss:
            raise InputError('model.mask_layer has no effect without model.mask_loss')
        if mask_layer is None:
            mask_layer = layers[2 * len(layers) // 3] if layers else 0
        if mask_loss and mask_layer not in layers:
            raise InputError(
                f'model.mask_layer must be one of the layers that look at the picture, {layers}, '
                f'got {mask_layer}'
            )
        self.mask_loss, self.mask_layer = mask_loss, mask_layer
        self.noun_counts = no_nouns()

    def forward(self, samples: dict[str, Any]) -> Any:
        """LAVIS's losses of a batch, and with `mask_loss` that of the masks.

        Raises:
            InputError: If the batch has masks and the model no use for them, or the other way
                round, or they are on another grid than the image encoder's patches.
        """
        self.check_masks(samples.get('noun_masks'))
        if not self.mask_loss:
            return super().forward(samples)
        with record_matching(self.text_encoder, [self.mask_layer]) as calls:
            output = super().forward(samples)
        # The first pass has the true pairs.
        ids, attention = calls[0].ids, calls[0].attention[self.mask_layer]
        masks = samples['noun_masks'].to(attention.device).flatten(1)
        found, places = self._places(ids, samples, masks)
        of_nouns = attention_of_nouns(attention, samples['noun_samples'][found].tolist(), places)
        output.loss_mask = mask_consistency(of_nouns, masks[found])
        output.loss = output.loss + self.mask_loss * output.loss_mask
        return output

    def check_masks(self, masks: Tensor | None) -> None:
        """Refuse masks that the model can't use, or a batch that lacks them.

        Args:
            masks: (K, h, w), or ``None`` where there are none.

        Raises:
            InputError: As `forward`.
        """
        grid = 'datasets.freeatm_pretrain.build_info.mask_grid'
        rows, _ = self.visual_encoder.patch_embed.grid_size
        if self.mask_loss and masks is None:
            raise InputError(f'model.mask_loss needs masks: set {grid}={rows}')
        if masks is not None and not self.mask_loss:
            raise InputError(f'{grid} has no effect without model.mask_loss: set both, or neither')
        if masks is not None and tuple(masks.shape[-2:]) != (rows, rows):
            raise InputError(
                f'masks are given on {masks.shape[-2]} x {masks.shape[-1]} cells, and the image '
                f'encoder has {rows} x {rows} patches: set {grid}={rows}'
            )

    def _places(
        self, ids: Tensor, samples: Mapping[str, Any], masks: Tensor
    ) -> tuple[list[int], list[list[int]]]:
        """Numbers of the nouns that text and view show, and their tokens; counts the others."""
        seen = (masks.sum(1) > 0).tolist()
        written = places_in_batch(self.tokenizer, ids, samples)
        found, places = [], []
        for index, there in enumerate(written):
            self.noun_counts['nouns'] += 1
            self.noun_counts['nouns_out_of_view'] += not seen[index]
            self.noun_counts['nouns_not_in_text'] += not there
            if seen[index] and there:
                found.append(index)
                places.append(there)
        return found, places

    def take_text_counts(self) -> Counter:
        """Also the `nouns` of masks, those not in their texts, and those that no view shows."""
        counts = super().take_text_counts()
        if self.mask_loss:
            counts.update(self.noun_counts)
            self.noun_counts = no_nouns()
        return counts

    @classmethod
    def from_config(cls, cfg=None) -> FreeATMBlipPretrain:
        """From a yaml's `model`; `configs/blip_pretrain_base.yaml` lists what there is.

        Raises:
            MissingFileError: If tokenizer, weights or checkpoint don't exist.
            InputError: If weights don't fit, sizes don't go together, or an entry is unknown.
        """
        cfg = _checked(cls, cfg)
        if cfg.get('pretrained') and not cfg.get('load_pretrained', True):
            raise InputError(
                'model.pretrained is not read with model.load_pretrained=False: leave one of them '
                'out'
            )
        tokenizer = load_tokenizer(cfg.tokenizer)
        image_encoder = _image_encoder(cfg)
        if cfg.get('image_weights'):
            _load_image_weights(image_encoder, cfg.image_weights)
        # The two further tokens get their embeddings in the constructor, as in LAVIS.
        config = _bert_config(cfg, image_encoder, tokenizer.vocab_size)
        folder = cfg.get('text_weights')
        if folder:
            text_encoder, text_decoder = _pretrained_text(folder, config)
        else:
            text_encoder = XBertEncoder(config=config, add_pooling_layer=False)
            text_decoder = XBertLMHeadDecoder(config=config)
        with redirect_stdout(io.StringIO()):  # LAVIS prints a line for each layer that it ties
            model = cls(
                image_encoder=image_encoder,
                text_encoder=text_encoder,
                text_decoder=text_decoder,
                queue_size=cfg.get('queue_size', 57600),
                alpha=cfg.get('alpha', 0.4),
                embed_dim=cfg.get('embed_dim', 256),
                momentum=cfg.get('momentum', 0.995),
                tie_enc_dec_weights=True,
                max_txt_len=cfg.get('max_txt_len', 30),
                tokenizer=tokenizer,
                mask_loss=float(cfg.get('mask_loss', 0)),
                mask_layer=cfg.get('mask_layer'),
            )
        if cfg.get('pretrained'):
            state = load_weights(cfg.pretrained)
            complete_momentum(state, cfg.pretrained)
            load_checked(model, state, cfg.pretrained, may_lack=['idx_queue'])
        model.reset_queue_ptr()  # so that whole batches fit behind it, whatever their size
        return model


def _load_image_weights(encoder: VisionTransformerEncoder, path: str | Path) -> None:
    """DeiT's or timm's weights into the image encoder; their classifier is left out."""
    load_checked(encoder, load_weights(path), path, may_hold=['head.', 'head_dist.', 'pre_logits.'])


def _pretrained_text(
    folder: str | Path, config: BertConfig
) -> tuple[XBertEncoder, XBertLMHeadDecoder]:
    """Text encoder and decoder with BERT's weights; the cross-attention, new to it, is random.

    Raises:
        FileNotFoundError: If the folder holds no weights.
        ValueError: If weights that BERT has are missing.
    """
    if not Path(folder).is_dir():
        raise MissingFileError(
            f'there is no folder of text weights {folder}: set '
            "model.text_weights to a folder with BERT's weights (names are not "
            'looked up)'
        )
    files = [Path(folder, name) for name in ('model.safetensors', 'pytorch_model.bin')]
    path = next((file for file in files if os.path.lexists(file)), None)
    if path is None:
        raise MissingFileError(
            f'the folder {folder} holds no text weights: '
            'model.safetensors or pytorch_model.bin is missing'
        )
    # Read here: transformers would also follow a list of files to wherever it leads.
    state = load_weights(path)
    check_finite(state, path)
    models = []
    for kind, options in ((XBertEncoder, {'add_pooling_layer': False}), (XBertLMHeadDecoder, {})):
        try:
            model, report = kind.from_pretrained(
                None, config=config, state_dict=dict(state), output_loading_info=True, **options
            )
        except Exception as error:  # of another size, or damaged, which raises in many ways
            raise InputError(
                f'the text weights in {folder} do not fit the model: {one_sentence(error)[:200]}'
            ) from None
        missing = [name for name in report['missing_keys'] if 'crossattention' not in name]
        if missing or report['mismatched_keys']:
            raise InputError(
                f'the text weights in {folder} do not fit the model: '
                f'{(missing or report["mismatched_keys"])[:3]} and perhaps more'
            )
        models.append(model)
    compat.tie_bert_bias(models[1])
    return tuple(models)


@registry.register_model('freeatm_blip_retrieval')
class FreeATMBlipRetrieval(_WithTokenizer, BlipRetrieval):
    """LAVIS's `blip_retrieval` with its tokenizer from local files and checked checkpoints.

    `k_test` is fitted to the set, and on one process `negative_all_rank` means this one.

    Args:
        tokenizer: From `freeatm_mm.lavis_ext.tokenizer.load_tokenizer`.
        *args: As LAVIS's.
        **kwargs: As LAVIS's.
    """

    PRETRAINED_MODEL_CONFIG_DICT = {'base': str(_CONFIGS / 'blip_retrieval_base.yaml')}
    NEEDED = ('image', 'text_input', 'image_id')

    @classmethod
    def from_config(cls, cfg=None) -> FreeATMBlipRetrieval:
        """From a yaml's `model`; `configs/blip_retrieval_base.yaml` lists what there is.

        Raises:
            MissingFileError: If tokenizer or checkpoint don't exist.
            InputError: If no checkpoint is named, it doesn't fit, or an entry is unknown.
        """
        cfg = _checked(cls, cfg)
        tokenizer = load_tokenizer(cfg.tokenizer)
        image_encoder = _image_encoder(cfg)
        config = _bert_config(cfg, image_encoder, len(tokenizer), _EVALUATED_TOKENS)
        several = dist.is_available() and dist.is_initialized()
        model = cls(
            image_encoder=image_encoder,
            text_encoder=XBertEncoder(config=config, add_pooling_layer=False),
            queue_size=cfg.get('queue_size', 57600),
            alpha=cfg.get('alpha', 0.4),
            embed_dim=cfg.get('embed_dim', 256),
            momentum=cfg.get('momentum', 0.995),
            negative_all_rank=cfg.get('negative_all_rank', False) and several,
            max_txt_len=cfg.get('max_txt_len', 35),
            tokenizer=tokenizer,
        )
        finetuned = cfg.get('load_finetuned', False)
        if cfg.get('finetuned') and not finetuned:
            raise InputError(
                'model.finetuned is read with model.load_finetuned=True alone: set '
                'that, or leave model.finetuned out'
            )
        if cfg.get('pretrained') and finetuned:
            raise InputError(
                'model.pretrained is not read with model.load_finetuned=True: leave one of them out'
            )
        path = (
            cfg.get('finetuned')
            if finetuned
            else (cfg.get('pretrained') if cfg.get('load_pretrained', True) else None)
        )
        if not path:
            raise InputError(
                'freeatm_blip_retrieval needs weights: set model.pretrained to a '
                'checkpoint of a pretraining, or model.load_finetuned=True and '
                'model.finetuned to one of a fine-tuning'
            )
        if finetuned:
            state = load_weights(path)
            complete_momentum(state, path)
            load_checked(model, state, path)
        else:
            model.load_from_pretrained(path)
        model.reset_queue_ptr()
        return model

    def forward(self, samples: dict[str, Any]) -> Any:
        """LAVIS's losses of a batch.

        Raises:
            InputError: If all its pairs are of one image, so that the matching loss finds no wrong
                pair; with `negative_all_rank`, if those of all processes are.
        """
        images = samples['image_id']
        if self.negative_all_rank:
            images = concat_all_gather(images)
        if bool((images == images[0]).all()):
            raise InputError(
                f'a batch of {len(images)} pairs is of one image, and the matching loss takes its '
                'wrong pairs from other images of the batch: set a larger run.batch_size_train, or '
                'train on more images'
            )
        return super().forward(samples)

    def load_from_pretrained(self, url_or_filename: str | Path) -> Counter:
        """Load a pretraining's checkpoint, all but its text decoder, and check it.

        Returns:
            The counts of `load_checked`.
        """
        state = load_weights(url_or_filename)
        complete_momentum(state, url_or_filename)
        return load_checked(
            self, state, url_or_filename, may_lack=['idx_queue'], may_hold=['text_decoder.']
        )

    def check_set(self, dataset: Any) -> None:
        """Refuse a set that can't be evaluated.

        Raises:
            InputError: If it is so small that one of several processes would get nothing.
        """
        processes = get_world_size()
        for what, total in (('image', len(dataset.image)), ('text', len(dataset.text))):
            if (processes - 1) * (total // processes + 1) >= total:  # LAVIS's shares
                raise InputError(
                    f'{processes} processes are too many to evaluate {counted(total, what)}: '
                    'start fewer'
                )

    def compute_sim_matrix(self, data_loader, task_cfg):
        """LAVIS's scores of all pairs: ITC picks the first k of each, ITM ranks these anew.

        Texts that are empty, or cut at the 35 tokens that LAVIS reads here, are counted and told.

        Args:
            data_loader: Of a retrieval set.
            task_cfg: `k_test`, how many are ranked anew; at most as many as the set has.

        Returns:
            Two float arrays, (images, texts) and (texts, images).

        Raises:
            InputError: As `check_set`.
        """
        self.check_set(data_loader.dataset)
        images, texts = len(data_loader.dataset.image), len(data_loader.dataset.text)
        k_test = min(int(task_cfg.k_test), images, texts)
        if k_test < task_cfg.k_test:
            logging.warning(
                'k_test is %d, and the set has %d images and %d texts: %d are ranked anew',
                task_cfg.k_test,
                images,
                texts,
                k_test,
            )
        if k_test < 10:
            logging.warning(
                'only %d candidates are ranked: figures at 10 count others by chance', k_test
            )
        # Counted apart from the texts of training.
        training, self.tokenizer.counts = self.tokenizer.counts, no_texts()
        scores = super().compute_sim_matrix(data_loader, OmegaConf.create({'k_test': k_test}))
        counts, self.tokenizer.counts = self.tokenizer.counts, training
        if counts['empty']:
            logging.warning(
                '%d of the %d texts to be found are empty once cleaned, as LAVIS takes out '
                '. ! " ( ) * # : ; ~',
                counts['empty'],
                counts['texts'],
            )
        if counts['truncated']:
            logging.warning(
                '%d of the %d texts to be found were longer than the 35 tokens that '
                'LAVIS reads, and lost %d tokens in all',
                counts['truncated'],
                counts['texts'],
                counts['lost_tokens'],
            )
        return scores
