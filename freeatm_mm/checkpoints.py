"""Reading checkpoints: the state dict, the backbone in it, and what of it fits a model.

Whatever comes in goes through `read_state`, which runs nothing of a file; see
`freeatm_mm.torch_files`. `freeatm_mm.compat.read_checkpoints_safely` sends mmengine that way too.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, url2pathname, urlopen

import torch
from torch import Tensor, nn

from freeatm_mm.errors import InputError, MissingFileError, first_line, listed
from freeatm_mm.files import atomic_write
from freeatm_mm.torch_files import check_regular, read_torch_file

__all__ = [
    'Match',
    'backbone_of',
    'check_complete',
    'check_fills',
    'check_finite',
    'check_starts',
    'check_trained',
    'download',
    'find_backbone',
    'fit',
    'fit_positions',
    'is_remote',
    'last_checkpoint',
    'load_weights',
    'local_path',
    'read_anywhere',
    'read_state',
    'resize_positions',
    'weights_of',
]

#: The largest file that is fetched, and the slowest that is waited for.
_MOST_BYTES, _SLOWEST, _PATIENCE = 32 * 2**30, 10_000, 60.0
#: What images enter by; a network that has to learn it anew isn't the one that was pretrained.
_FIRST_LAYERS = ('stem.', 'conv1.', 'patch_embed.')


def load_weights(checkpoint: str | Path) -> dict[str, Tensor]:
    """Read the weights of a checkpoint; see `read_state` and `weights_of`.

    Args:
        checkpoint: The file.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it can't be read, or holds no state dict.
    """
    return weights_of(read_state(checkpoint), checkpoint)


def read_state(checkpoint: str | Path, map_location: Any = 'cpu') -> Any:
    """Read a checkpoint of torch, mmengine or LAVIS, or a ``.safetensors`` file; run nothing of it.

    Tensors, plain containers and mmengine's loss histories are read; anything else is refused by
    its name. Which kind of file it is is told from its first bytes.

    Args:
        checkpoint: The file.
        map_location: As `torch.load`'s.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it is no regular file, is damaged, or holds anything else, which isn't run.
    """
    path = check_regular(checkpoint)
    with open(path, 'rb') as file:
        if file.read(9)[8:] != b'{':
            return read_torch_file(file, map_location, path)
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except Exception as error:  # of several kinds, for damaged files
        raise InputError(
            f"{path} can't be read: it is damaged or cut off ({first_line(error)[:200]})"
        ) from None
    if isinstance(map_location, (str, torch.device)):
        state = {name: value.to(map_location) for name, value in state.items()}
    return state


def weights_of(content: Any, source: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint's content: under ``state_dict`` or ``model``, or at the top.

    What `DataParallel` puts in front of every name (``module.``) is taken off.

    Args:
        content: From `read_state`.
        source: Where it comes from, for messages.

    Raises:
        InputError: If there are none.
    """
    state = content
    for key in ('state_dict', 'model'):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            state = content[key]
            break
    weights = (
        {name: value for name, value in state.items() if torch.is_tensor(value)}
        if isinstance(state, Mapping)
        else {}
    )
    if not weights or not all(isinstance(name, str) for name in weights):
        raise InputError(
            f'{source} holds no weights: they are looked for under "state_dict", '
            'under "model" and at the top'
        )
    if all(name.startswith('module.') for name in weights):
        return {name[len('module.') :]: value for name, value in weights.items()}
    return weights


def check_finite(weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Make sure that no weight is NaN or infinite, as after a training that diverged.

    Args:
        weights: By their names.
        source: Where they come from.

    Raises:
        InputError: If one is; names the first tensors.
    """
    broken = [
        name
        for name, value in weights.items()
        if (value.is_floating_point() or value.is_complex())
        and not torch.isfinite(value.float() if value.element_size() == 1 else value).all()
    ]
    if broken:
        raise InputError(
            f'{source} holds weights that are NaN or infinite, in '
            f'{listed(broken)}: its training diverged; use an earlier '
            'checkpoint, or train again at a lower rate'
        )


def check_trained(content: Any, source: str | Path) -> None:
    """Make sure that a checkpoint comes from a training of at least one step.

    Only mmengine's checkpoints say how many steps they had; others pass.

    Raises:
        InputError: If it had none.
    """
    meta = content.get('meta') if isinstance(content, Mapping) else None
    steps = meta.get('iter') if isinstance(meta, Mapping) else None
    if isinstance(steps, int) and steps <= 0:
        raise InputError(
            f'{source} is of a training without a single step: its weights are random '
            '(was there less data than one batch?)'
        )


def check_starts(cfg: Mapping) -> None:
    """Look at the checkpoint that a config goes on from (``load_from``), before anything is built.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it can't be read, or is to be resumed from and wasn't written by a training
            of mmengine.
    """
    source = cfg.get('load_from')
    if not source or is_remote(source):
        return
    content = read_state(local_path(source), 'meta')
    if not cfg.get('resume'):
        weights_of(content, source)
        return
    meta = content.get('meta') if isinstance(content, Mapping) else None
    if not (
        isinstance(meta, Mapping)
        and type(meta.get('epoch')) is type(meta.get('iter')) is int
        and isinstance(content.get('message_hub'), Mapping)
        and isinstance(content.get('state_dict'), Mapping)
    ):
        raise InputError(
            f"{source} can't be resumed from: it holds weights, but not how far a "
            'training was; start a new one from them with load_from'
        )


def download(address: str, folder: str | Path | None = None) -> Path:
    """Fetch a checkpoint by ``http`` or ``https``, once; later calls find it where it was put.

    A name that ends in digits of the file's hash, as torchvision's do, is kept; any other gets some
    of the address, as files of one name lie at many addresses. What is put at an address later is
    not seen.

    Args:
        address: Its address.
        folder: Where to put it; by default torch's own folder of checkpoints.

    Returns:
        The file.

    Raises:
        InputError: If it can't be fetched, is larger than 32 GiB, or comes slower than 10 kB/s.
    """
    name = Path(unquote(urlsplit(address).path)).name
    if not name:
        raise InputError(f'{address} is the address of no file')
    if not re.search(r'-[0-9a-f]{8,}\.[^.]+$', name):
        path = Path(name)
        digits = hashlib.sha256(address.encode()).hexdigest()[:8]
        name = f'{path.stem}-{digits}{path.suffix}'
    target = Path(folder or Path(torch.hub.get_dir(), 'checkpoints')).expanduser() / name
    if target.exists():
        return check_regular(target)
    advice = f'fetch it elsewhere and put it at {target}, or name another checkpoint'
    too_large = InputError(f'{address} is larger than {_MOST_BYTES >> 30} GiB: no checkpoint is')
    start, done = time.monotonic(), 0
    try:
        with (
            urlopen(
                Request(address, headers={'User-Agent': 'freeatm_mm'}), timeout=_PATIENCE
            ) as answer,
            atomic_write(target) as file,
        ):
            length = int(answer.headers.get('Content-Length') or 0)
            if length > _MOST_BYTES:
                raise too_large
            if length > shutil.disk_usage(target.parent).free:
                raise InputError(
                    f'{target.parent} has no room for the {length >> 20:,} MiB of {address}'
                )
            while block := answer.read1(1 << 20):
                done += len(block)
                if done > _MOST_BYTES:
                    raise too_large
                waited = time.monotonic() - start
                if waited > _PATIENCE and done < waited * _SLOWEST:
                    raise InputError(
                        f'{address} comes slower than {_SLOWEST // 1000} kB/s: {advice}'
                    )
                file.write(block)
            if length and done < length:
                raise InputError(f'{address} ended after {done:,} of {length:,} bytes: {advice}')
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = error if isinstance(error, HTTPError) else getattr(error, 'reason', error)
        raise InputError(f"{address} can't be fetched ({reason}): {advice}") from None
    return target


def is_remote(address: str | Path) -> bool:
    """Whether it is an address, and not a path or one of ``file://``."""
    text = str(address)
    return '://' in text and not text.startswith('file://')


def local_path(address: str | Path) -> Path:
    """The path that a ``file://`` address or an ordinary name means."""
    text = str(address)
    if text.startswith('file://'):
        text = url2pathname(urlsplit(text).path)
    return Path(text).expanduser()


def find_backbone(checkpoint: str | Path, prefix: str = 'backbone.') -> dict[str, Tensor]:
    """Read the backbone's tensors of a checkpoint, by their names inside the backbone.

    Of MoCo's two encoders it is the query's (``backbone.``, or ``encoder_q.`` as MoCo's own code
    calls it). A checkpoint
    whose tensors have no prefix at all, such as torchvision's or a converted one, is a backbone
    as a whole; its classifier (``fc.``, ``head.``) is left out.

    Args:
        checkpoint: A file, or an address that mmengine knows, such as ``torchvision://resnet50``.
        prefix: What the backbone's tensors are called by.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it can't be read, holds no backbone, comes from a training without a step,
            or holds weights that are NaN or infinite.
    """
    return backbone_of(read_anywhere(str(checkpoint)), checkpoint, prefix)


def backbone_of(
    content: Any, checkpoint: str | Path, prefix: str = 'backbone.'
) -> dict[str, Tensor]:
    """The backbone's tensors in a checkpoint's content; see `find_backbone`.

    Args:
        content: From `read_anywhere`.
        checkpoint: Where it comes from, for messages.
        prefix: What the backbone's tensors are called by.

    Raises:
        InputError: As `find_backbone`.
    """
    check_trained(content, checkpoint)
    weights = weights_of(content, checkpoint)
    for start in (prefix, 'encoder_q.'):
        found = {
            name[len(start) :]: value
            for name, value in weights.items()
            if name.startswith(start) and not name.startswith('encoder_q.fc.')
        }
        if found:
            check_finite(found, checkpoint)
            return found
    bare = {name: value for name, value in weights.items() if not name.startswith(('fc.', 'head.'))}
    if not any(name.startswith(_FIRST_LAYERS) for name in bare):
        shown = ', '.join(list(weights)[:3])
        raise InputError(
            f'{checkpoint} holds no backbone: no tensor is called {prefix}*, and '
            f'those there are ({shown}, ...) are no backbone by themselves.'
        )
    check_finite(bare, checkpoint)
    return bare


def read_anywhere(checkpoint: str) -> Any:
    """What a checkpoint holds, a file or at an address that mmengine knows.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it can't be read or fetched.
    """
    if not is_remote(checkpoint):
        return read_state(local_path(checkpoint))
    from mmengine.runner import CheckpointLoader

    from freeatm_mm.compat import read_checkpoints_safely

    read_checkpoints_safely()
    try:
        return CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    except (KeyError, FileNotFoundError) as error:  # of mmengine's lists of names
        if isinstance(error, InputError):
            raise
        raise InputError(
            f'there is no checkpoint {checkpoint}: mmengine knows no '
            f'{str(error.args[0]) if error.args else checkpoint}'
        ) from None


@dataclass(frozen=True)
class Match:
    """How weights fit a module, by name and shape.

    Batch counters of normalisation layers (`num_batches_tracked`), which old checkpoints lack, are
    among what fits, where they do, but never count.

    Attributes:
        fitting: What fits, by its names in the module.
        missing: Names in the module that the weights don't have.
        misshapen: Names in the module that they have in another shape, with both shapes.
        unused: Names of weights that nothing in the module takes.
    """

    fitting: Mapping[str, Tensor]
    missing: tuple[str, ...]
    misshapen: Mapping[str, str]
    unused: tuple[str, ...]

    @property
    def matched(self) -> int:
        """How many of the module's tensors find their weights."""
        return sum(map(_counts, self.fitting))

    @property
    def total(self) -> int:
        """How many tensors the module has."""
        return self.matched + len(self.missing) + len(self.misshapen)

    @property
    def filled(self) -> float:
        """Share of the module's tensors that find their weights."""
        return self.matched / max(self.total, 1)

    @property
    def used(self) -> float:
        """Share of the weights that are taken."""
        return self.matched / max(self.matched + len(self.unused), 1)

    def is_same_network(self, parts: Iterable[str] = ('',), minimum: float = 0.95) -> bool:
        """Whether the weights are of the module's architecture.

        Args:
            parts: The paths that were given to `fit`.
            minimum: Share of the module's tensors that must find their weights, and of the weights
                that must be taken, the first layer's among them and none of another shape.
        """
        first = tuple(
            f'{path}.{layer}' if path else layer for path in parts for layer in _FIRST_LAYERS
        )
        return (
            not self.misshapen
            and not any(name.startswith(first) for name in self.missing)
            and min(self.filled, self.used) >= minimum
        )

    def load(self, module: nn.Module) -> None:
        """Copy what fits into the module that it was matched with."""
        own = module.state_dict()
        with torch.no_grad():
            for name, value in self.fitting.items():
                own[name].copy_(value)

    def describe(self) -> str:
        """Return one sentence with all the numbers and the first names of each kind."""
        text = f'{self.matched} of the {self.total} tensors found their weights'
        misshapen = [f'{name} {shapes}' for name, shapes in self.misshapen.items()]
        for names, what in (
            (self.missing, 'not in the checkpoint'),
            (misshapen, 'of another shape'),
            (self.unused, "the checkpoint's, unused"),
        ):
            if names:
                more = f' and {len(names) - 5} more' if len(names) > 5 else ''
                text += f'; {what}: {", ".join(names[:5])}{more}'
        return text


def fit(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    parts: Iterable[str] = ('',),
    skip: Iterable[str] = (),
    resize: Callable[[nn.Module, str, Tensor, Tensor], Tensor] | None = None,
) -> Match:
    """Look which weights fit a module; nothing is changed, and what may lack is the caller's.

    Args:
        module: The module; see `Match.load` for filling it.
        weights: By their names inside the parts.
        parts: Paths of the module's parts that the weights are for; by default the whole module.
        skip: Regular expressions for names inside the parts that are left out.
        resize: `resize(part, name, value, target)` may return a value of another shape in the
            target's.
    """
    patterns, taken = tuple(skip), set()
    fitting, missing, misshapen = {}, [], {}
    for path in parts:
        part = module.get_submodule(path)
        for name, target in part.state_dict().items():
            if any(re.search(pattern, name) for pattern in patterns):
                continue
            full = f'{path}.{name}' if path else name
            if name not in weights:
                missing += [full] * _counts(name)
                continue
            taken.add(name)
            value = weights[name]
            if resize is not None and value.shape != target.shape:
                value = resize(part, name, value, target)
            if value.shape == target.shape:
                fitting[full] = value
            elif _counts(name):
                misshapen[full] = f'{tuple(value.shape)} for {tuple(target.shape)}'
    unused = (name for name in weights if name not in taken and _counts(name))
    return Match(fitting, tuple(missing), misshapen, tuple(unused))


def _counts(name: str) -> bool:
    return not name.endswith('num_batches_tracked')


def check_complete(model: nn.Module, checkpoint: str | Path) -> None:
    """Make sure that a checkpoint fills a whole model, which mmengine's loading does not.

    That one warns and goes on, so that a pretraining's checkpoint, or another config's, would be
    evaluated with random heads. Position embeddings may be of another size if the model resizes
    them as it loads. Weights may hold parts that the model lacks, such as an auxiliary head, but
    of the parts that it has next to nothing may be left over: a deeper network's would be cut off.

    Args:
        model: The model.
        checkpoint: A training checkpoint; see `load_weights`.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it can't be read, or tensors are missing, of another shape, left over, NaN or
            infinite; names the first ones.
    """
    weights = load_weights(checkpoint)
    check_finite(weights, checkpoint)
    check_fills(model, weights, checkpoint)


def check_fills(model: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Make sure that weights fill a whole model; see `check_complete`.

    Args:
        model: The model.
        weights: By their names in the model.
        source: Where they come from, for messages.

    Raises:
        InputError: If tensors are missing or of another shape, or more than 5 % of those of the
            model's parts are left over; names the first ones.
    """
    match = fit(model, weights)
    # mmpretrain's own MoCo keeps no nouns beside its queue: none are known, as at a start.
    lacking = [
        *(name for name in match.missing if not name.endswith('queue_nouns')),
        *(name for name in match.misshapen if not _resizes(model, name)),
    ]
    if lacking:
        raise InputError(
            f'{source} is not of this config: it lacks, or has in another shape, {listed(lacking)}'
        )
    parts = {name for name, _ in model.named_children()}
    over = [name for name in match.unused if name.split('.')[0] in parts]
    if len(over) > 0.05 * (match.matched + len(over)):
        raise InputError(
            f'{source} is not of this config, but of a larger model: of its weights nothing takes '
            f'{listed(over)}'
        )


def _resizes(model: nn.Module, name: str) -> bool:
    """Whether a tensor is a position embedding that its module resizes as it loads."""
    path, _, last = name.rpartition('.')
    return last == 'pos_embed' and bool(model.get_submodule(path)._load_state_dict_pre_hooks)


def last_checkpoint(work_dir: str | Path) -> Path | None:
    """The checkpoint that a work directory's ``last_checkpoint`` names; None without that note.

    By its name alone: the folder may have been moved since.

    Raises:
        MissingFileError: If it isn't there.
    """
    note = Path(work_dir) / 'last_checkpoint'
    if not note.is_file():
        return None
    with open(note, encoding='utf-8', errors='replace') as file:
        name = Path(file.read(4096).strip().replace('\0', '')).name
    if name in ('', '..'):
        raise MissingFileError(
            f'{note} names no checkpoint: name one yourself, or delete that note to start anew'
        )
    found = note.parent / name
    if not os.path.exists(found):  # a folder, where a framework shards its checkpoints
        others = ', '.join(path.name for path in sorted(note.parent.glob('*.pth'))) or 'none'
        raise MissingFileError(
            f'{note} names {name[:200]}, which is not there (others: {others}): '
            'name the checkpoint yourself, or delete that note to start anew'
        )
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
    extra = int(round(length**0.5) ** 2 != length)
    side = round((length - extra) ** 0.5)
    if side**2 + extra != length:
        raise ValueError(f'A position embedding of {length} tokens is not of a square grid.')
    if class_token and not extra:
        raise ValueError("The checkpoint's position embedding has no class token.")
    return resize_pos_embed(
        positions[:, extra - class_token :],
        (side, side),
        tuple(grid),
        num_extra_tokens=int(class_token),
    )


def fit_positions(module: nn.Module, name: str, value: Tensor, target: Tensor) -> Tensor:
    """A ViT's position embedding in the form that a module of mmpretrain's or mmseg's keeps it.

    For `fit`, as its ``resize``; what is no position embedding stays as it is.

    Args:
        module: The backbone.
        name: Of the tensor inside it.
        value: The checkpoint's.
        target: The module's own.

    Raises:
        ValueError: As `resize_positions`.
    """
    if name != 'pos_embed' or value.shape[-1] != target.shape[-1]:
        return value
    if target.dim() == 4:  # mmpretrain's ViTSAM: (1, rows, columns, C), no class token
        rows, columns = target.shape[1:3]
        return resize_positions(value, (rows, columns), False).reshape(target.shape)
    grid: Any = module.patch_shape if hasattr(module, 'patch_shape') else module.patch_resolution
    return resize_positions(value, grid, target.shape[1] == grid[0] * grid[1] + 1)
