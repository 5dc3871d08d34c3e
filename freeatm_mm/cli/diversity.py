"""Say how different the samples of a store are: nouns, near duplicates, spread of the images.

    freeatm diversity STORE [STORE ...]
    freeatm diversity STORE --timm resnet50.a1_in1k --weights model.safetensors

The spread is measured in downsampled pixels, or in the features of a timm model; figures are
comparable between stores that were looked at alike, with the same number of images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freeatm_mm.cli._effects import named_options, refuse_idle
from freeatm_mm.cli._numbers import whole
from freeatm_mm.cli._paths import path_here
from freeatm_mm.errors import InputError, one_sentence, tool
from freeatm_mm.files import atomic_write, check_replaceable

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('stores', nargs='+', metavar='STORE', help="the stores' folders")
    add(
        '--limit',
        type=whole(1, 10**7),
        default=20_000,
        metavar='N',
        help='images to look at, evenly spread (%(default)s)',
    )
    add('--timm', metavar='MODEL', help='a timm model whose features are taken')
    add('--weights', metavar='FILE', help="its weights (default: timm's own, from the hub)")
    add('--device', default='cpu', help='for the model (%(default)s)')
    add('--out', type=path_here, metavar='FILE', help='also write the figures as JSON')
    args = parser.parse_args(argv)
    refuse_idle(named_options(args, parser, argv), not args.timm, 'without --timm', 'device')
    return args


def timm_features(
    model: str, weights: str | None, device: str
) -> Callable[[Sequence[Image.Image]], np.ndarray]:
    """What returns a timm model's pooled features of images.

    Raises:
        InputError: If timm, the model or its weights can't be had.
    """
    try:
        import numpy as np
        import timm
        import torch
    except ImportError as error:
        raise InputError(f'--timm needs {error.name}: pip install timm') from None
    if weights is not None and not Path(weights).is_file():
        raise InputError(f'there are no weights {weights}')
    from freeatm_mm.checkpoints import fit, load_weights

    options: dict[str, Any] = {'pretrained': weights is None, 'num_classes': 0}
    try:
        net = timm.create_model(model, **options)
        if weights is not None:
            match = fit(net, load_weights(weights))
            if match.missing or match.misshapen:
                raise InputError(f'{weights} is not of it: {match.describe()}')
            match.load(net)
        net = net.to(device).eval()
    except Exception as error:  # of the hub, of a file that anybody wrote
        raise InputError(f"the timm model {model} can't be had: {one_sentence(error)}") from None
    transform: Any = timm.data.create_transform(**timm.data.resolve_model_data_config(net))

    def features(images: Sequence[Image.Image]) -> np.ndarray:
        batch = torch.stack([transform(image) for image in images]).to(device)
        with torch.no_grad():
            return np.asarray(net(batch).float().cpu())

    return features


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    args = parse_args(argv)
    from freeatm_mm.store import Store
    from freeatm_mm.store.diversity import store_diversity

    if args.out:
        check_replaceable(args.out, 'a file of freeatm diversity', '"near_duplicates": ')
    options: dict[str, Any] = {'limit': args.limit}
    if args.timm:
        options['features'] = timm_features(args.timm, args.weights, args.device)
        options['embedding'] = f'the features of {args.timm}'
    elif args.weights:
        raise InputError('--weights needs --timm, the model that they are of')
    found = {}
    for path in args.stores:
        diversity = store_diversity(Store(path), **options)
        found[path] = diversity.to_json()
        print(f'{path}\n{diversity}')
    if args.out:
        with atomic_write(args.out) as file:
            file.write((json.dumps(found, indent=1) + '\n').encode())
    return 0
