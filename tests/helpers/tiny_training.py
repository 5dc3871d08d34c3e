"""Steps of training that a process can run on all of a batch or on its part of it."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from mmengine.logging import MessageHub

from helpers.tiny_models import dino, moco, samples, simclr, views

# One step a row: instances of the images of the first and of the second process.
STEPS = [
    ([2, 1, 3], [1, 0, 1]),
    ([3, 3, 3], [None, None, None]),
    ([None] * 3, [0, None, 0]),
    ([0, None, 1], [2, 4, 0]),
]


def average(gradients: list[torch.Tensor]) -> None:
    """What DistributedDataParallel does with the gradients of its processes."""
    for gradient in gradients:
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()


def moco_steps(rank: int | None = None) -> list[list[torch.Tensor]]:
    """Gradients and queue after each step, on a process's half of each batch, or on all of it."""
    model = moco(queue_len=17)
    model.backbone.eval()  # batch statistics differ between halves and whole; gradients must not
    model.encoder_k.eval()
    results = []
    for number, counts in enumerate(STEPS):
        inputs, data = views(6, seed=number), samples(counts[0] + counts[1], seed=number)
        if rank is not None:
            inputs = [view[3 * rank : 3 * rank + 3] for view in inputs]
            data = data[3 * rank : 3 * rank + 3]
        model.zero_grad()
        losses = model.loss(inputs, data)
        losses['loss'].backward()
        gradients = [
            parameter.grad for parameter in model.parameters() if parameter.grad is not None
        ]
        if rank is not None:
            average(gradients)
        results.append(copy.deepcopy([*gradients, model.queue, model.queue_nouns, model.queue_ptr]))
    return results


def dino_steps(rank: int | None = None) -> list[list[torch.Tensor]]:
    """Gradients, teacher and centre after each step, on a process's half of each batch, or all."""
    hub = MessageHub.get_current_instance()
    hub.update_info('max_iters', 10)
    model = dino()
    model.eval()  # batch statistics differ between halves and whole
    results = []
    for number, counts in enumerate(STEPS):
        inputs, data = views(6, seed=number), samples(counts[0] + counts[1], seed=number)
        if rank is not None:
            inputs = [view[3 * rank : 3 * rank + 3] for view in inputs]
            data = data[3 * rank : 3 * rank + 3]
        hub.update_info('iter', number)
        model.zero_grad()
        model.loss(inputs, data)['loss'].backward()
        trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
        gradients = [parameter.grad for parameter in trained]
        if rank is not None:
            average(gradients)
        with torch.no_grad():
            for parameter in trained:
                parameter.sub_(parameter.grad, alpha=0.1)
        results.append(
            copy.deepcopy([*gradients, *model.teacher.state_dict().values(), model.center])
        )
    return results


def simclr_steps(
    rank: int | None = None, exact: bool = True, with_masks: bool = True
) -> list[list[torch.Tensor]]:
    """Gradients of the steps, on a process's half of each batch, or on all of it."""
    results = []
    for form in ('nt_xent', 'equation3'):
        model = simclr(loss=form, exact_gradients=exact)
        model.eval()  # batch statistics of halves differ
        for number, counts in enumerate(STEPS):
            inputs, data = views(6, seed=number), samples(counts[0] + counts[1], seed=number)
            if not with_masks:
                data = None
            if rank is not None:
                part = slice(3 * rank, 3 * rank + 3)
                inputs, data = [view[part] for view in inputs], data and data[part]
            model.zero_grad()
            model.loss(inputs, data)['loss'].backward()
            gradients = [parameter.grad for parameter in model.parameters()]
            if rank is not None:
                average(gradients)
            results.append(copy.deepcopy(gradients))
    return results


def simclr_runs(rank: int | None = None) -> list[list[list[torch.Tensor]]]:
    """`simclr_steps`: exact gradients, mmpretrain's, and both of mmpretrain's without masks."""
    return [
        simclr_steps(rank),
        simclr_steps(rank, exact=False),
        simclr_steps(rank, with_masks=False),
        simclr_steps(rank, exact=False, with_masks=False),
    ]


def stock_and_ours(rank: int | None = None) -> list[list[torch.Tensor]]:
    """Two steps of mmpretrain's MoCo, of ours without masks, and of ours with all-ones masks.

    Batch normalisation as in training: what the keys are depends on who shuffled which images.
    """
    whole = samples([1] * 6)
    for sample in whole:
        sample.instance_masks = torch.ones_like(sample.instance_masks)
    results = []
    for stock, data in ((True, None), (False, None), (False, whole)):
        model = moco(stock)
        for number in range(2):
            inputs = [
                view if rank is None else view[3 * rank : 3 * rank + 3]
                for view in views(6, seed=number)
            ]
            part = data if data is None or rank is None else data[3 * rank : 3 * rank + 3]
            torch.manual_seed(number)  # the shuffle, which the first process draws
            model.zero_grad()
            loss = model.loss(inputs, part)['loss']
            loss.backward()
        results.append(
            [
                loss.detach(),
                model.queue,
                *(parameter.grad for parameter in model.parameters() if parameter.grad is not None),
            ]
        )
    return results


def all_runs(rank: int | None = None) -> list:
    """All of the above: starting processes takes longer than running them."""
    return [moco_steps(rank), simclr_runs(rank), stock_and_ours(rank), dino_steps(rank)]
