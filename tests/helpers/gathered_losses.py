"""Losses over instances, for `two_processes`: the same on one process and on two."""

from __future__ import annotations

import torch
from torch import Tensor

from freeatm_mm.pytorch import InstanceDistillation, InstanceInfoNCE, InstanceNTXent

CASES = (
    'nt_xent',
    'other_nouns',
    'same_noun',
    'equation3',
    'equation3 same_noun',
    'info_nce',
    'info_nce same_noun',
    'distillation',
)
#: Instances of the first and of the second process.
NUMBERS = ((3, 3), (4, 1), (0, 5), (2, 0), (0, 0))


def all_instances(number: int) -> Tensor:
    """(number, 2, 6): of two views."""
    return torch.randn(number, 2, 6, generator=torch.Generator().manual_seed(number))


def losses_of(case: str, rows: Tensor, gather: bool, start: int = 0) -> dict[str, Tensor]:
    """Loss, gradient and state of one loss.

    Args:
        case: One of `CASES`.
        rows: (M, 2, 6) instances of this process.
        gather: As of the losses.
        start: How many instances other processes have before.
    """
    rows = rows.clone().requires_grad_()
    nouns = (start + torch.arange(len(rows))) % 2
    first, second = rows.unbind(1)
    torch.manual_seed(0)
    positives = 'same_noun' if 'same_noun' in case else 'own'
    if case.startswith('info_nce'):
        negatives = 'all' if positives == 'same_noun' else 'other_nouns'
        module = InstanceInfoNCE(6, 4, negatives=negatives, gather=gather, positives=positives)
        loss = module(first, second, nouns)
    elif case == 'distillation':
        module = InstanceDistillation(6, gather=gather)
        loss = module([first, second], [first, second])
    else:
        negatives = 'other_nouns' if case == 'other_nouns' else 'all'
        module = InstanceNTXent(
            0.3,
            negatives,
            equation3=case.startswith('equation3'),
            gather=gather,
            positives=positives,
        )
        loss = module(first, second, nouns)
    loss.backward()
    return {'loss': loss.detach(), 'gradient': rows.grad, **module.state_dict()}


def run(rank: int) -> dict[str, dict[str, Tensor]]:
    """All cases in one of two processes."""
    results = {}
    for numbers in NUMBERS:
        start = numbers[0] * rank
        rows = all_instances(sum(numbers))[start : start + numbers[rank]]
        for case in CASES:
            results[f'{case} {numbers}'] = losses_of(case, rows, True, start)
    return results
