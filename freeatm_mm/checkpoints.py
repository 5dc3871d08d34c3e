"""Reading checkpoints: the state dict, the backbone in it, position embeddings of another size."""
from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from freeatm_mm.errors import InputError, MissingFileError

__all__ = ['check_complete', 'find_backbone', 'last_checkpoint', 'load_weights', 'read_state',
           'resize_positions']


def load_weights(checkpoint: str | Path) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors`` or from a checkpoint of torch or mmengine.

    Nothing but tensors and plain containers is unpickled; the running statistics that mmengine
    keeps in its checkpoints are let through by name.

    Args:
        checkpoint: The file.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it can't be read, or holds no state dict.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_file():
        raise MissingFileError(f'Checkpoint {checkpoint} not found.')
    if checkpoint.suffix == '.safetensors':
        from safetensors import SafetensorError
        from safetensors.torch import load_file
        try:
            return load_file(checkpoint)
        except SafetensorError as error:
            raise _unreadable(checkpoint, error) from error
    return _tensors(read_state(checkpoint), checkpoint)


def read_state(checkpoint: str | Path) -> object:
    """Unpickle a checkpoint of torch or mmengine: tensors, plain containers, loss histories.

    Raises:
        InputError: If it is damaged, or holds anything else, which isn't run.
    """
    with torch.serialization.safe_globals(_mmengine_globals()):
        try:
            return torch.load(checkpoint, map_location='cpu', weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise _unreadable(checkpoint, error) from error


def _unreadable(checkpoint: str | Path, error: Exception) -> InputError:
    first = next(iter(str(error).splitlines()), type(error).__name__)
    return InputError(f'{checkpoint} can\'t be read: it is damaged or cut off, or holds more than '
                      f'tensors and plain containers ({first})')


def _tensors(content: object, source: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's content, under ``state_dict`` or at the top."""
    state = content.get('state_dict', content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not any(torch.is_tensor(v) for v in state.values()):
        raise InputError(f'{source} holds no state dict.')
    return {name: value for name, value in state.items() if torch.is_tensor(value)}


def _mmengine_globals() -> list:
    """What a training checkpoint of mmengine holds besides tensors: loss histories in numpy."""
    try:
        from mmengine.logging.history_buffer import HistoryBuffer
    except ImportError:  # reading plain state dicts needs no mmengine
        return []
    multiarray = (np._core if hasattr(np, '_core') else np.core).multiarray
    dtypes = {type(np.dtype(kind)) for kind in ('f4', 'f8', 'i4', 'i8', 'u4', 'u8')}
    return [HistoryBuffer, getattr, slice, np.ndarray, np.dtype, multiarray._reconstruct,
            multiarray.scalar, *dtypes]


def find_backbone(checkpoint: str | Path, prefix: str = 'backbone.') -> dict[str, Tensor]:
    """Read the backbone's tensors of a checkpoint, by their names inside the backbone.

    Of MoCo's two encoders it is the query's (``backbone.``), as in MoCo's own code. A checkpoint
    whose tensors have no prefix at all, such as torchvision's or a converted one, is a backbone
    as a whole; its classifier (``fc.``, ``head.``) is left out.

    Args:
        checkpoint: A file, or an address that mmengine knows, such as ``torchvision://resnet50``.
        prefix: What the backbone's tensors are called by.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it can't be read, or holds no backbone.
    """
    if '://' in str(checkpoint):
        from mmengine.runner import CheckpointLoader
        weights = _tensors(CheckpointLoader.load_checkpoint(str(checkpoint), map_location='cpu'),
                           checkpoint)
    else:
        weights = load_weights(checkpoint)
    found = {name[len(prefix):]: value for name, value in weights.items()
             if name.startswith(prefix)}
    if found:
        return found
    bare = {name: value for name, value in weights.items()
            if not name.startswith(('fc.', 'head.'))}
    if not any(name.startswith(('conv1.', 'stem.', 'patch_embed.')) for name in bare):
        shown = ', '.join(list(weights)[:3])
        raise InputError(f'{checkpoint} holds no backbone: no tensor is called {prefix}*, and '
                         f'those there are ({shown}, ...) are no backbone by themselves.')
    return bare


def check_complete(model: nn.Module, checkpoint: str | Path) -> None:
    """Make sure that a checkpoint fills a whole model, which mmengine's loading does not.

    That one warns and goes on, so that a pretraining's checkpoint, or another config's, would be
    evaluated with random heads. Position embeddings may be of another size: models resize them.

    Args:
        model: The model.
        checkpoint: A training checkpoint; see `load_weights`.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it can't be read, or tensors are missing or of another shape; names the
            first ones.
    """
    weights = load_weights(checkpoint)
    # mmpretrain's own MoCo keeps no nouns beside its queue: none are known, as at a start.
    lacking = [name for name, value in model.state_dict().items()
               if not name.endswith(('num_batches_tracked', 'queue_nouns'))
               and (name not in weights
                    or weights[name].shape != value.shape and not name.endswith('pos_embed'))]
    if lacking:
        more = f' and {len(lacking) - 3} more' if len(lacking) > 3 else ''
        raise InputError(f'{checkpoint} is not of this config: it lacks, or has in another shape, '
                         f'{", ".join(lacking[:3])}{more}')


def last_checkpoint(work_dir: str | Path) -> Path | None:
    """The checkpoint that a work directory's ``last_checkpoint`` names; None without that note.

    By its name alone: the folder may have been moved since.

    Raises:
        MissingFileError: If it isn't there.
    """
    note = Path(work_dir) / 'last_checkpoint'
    if not note.is_file():
        return None
    found = note.parent / Path(note.read_text().strip()).name
    if not found.exists():  # a folder, where a framework shards its checkpoints
        others = ', '.join(path.name for path in sorted(note.parent.glob('*.pth'))) or 'none'
        raise MissingFileError(f'{note} names {found.name}, which is not there (others: {others}): '
                               'name the checkpoint yourself, or delete that note to start anew')
    return found


def resize_positions(positions: Tensor, grid: tuple[int, int], class_token: bool) -> Tensor:
    """Bring a ViT's position embedding to another grid, by bicubic interpolation as ViT does.

    Args:
        positions: (1, N, C) of a square grid, the class token's first where N - 1 is a square.
        grid: Rows and columns wanted.
        class_token: Whether the class token's embedding is wanted.

    Returns:
        (1, rows * columns, C), with one more in front where ``class_token``.

    Raises:
        ValueError: If the embedding is not of a square grid, or lacks the class token.
    """
    from mmpretrain.models.utils import resize_pos_embed
    length = positions.shape[1]
    extra = int(round(length**0.5)**2 != length)
    side = round((length - extra)**0.5)
    if side**2 + extra != length:
        raise ValueError(f'A position embedding of {length} tokens is not of a square grid.')
    if class_token and not extra:
        raise ValueError("The checkpoint's position embedding has no class token.")
    return resize_pos_embed(positions[:, extra - class_token:], (side, side), tuple(grid),
                            num_extra_tokens=int(class_token))
