"""Steps of training that a process can run on all of a batch or on its part of it."""
from __future__ import annotations

import copy

import torch
import torch.distributed as dist

from tiny_models import moco, samples, views

# One step a row: instances of the images of the first and of the second process.
STEPS = [([2, 1, 3], [1, 0, 1]), ([3, 3, 3], [None, None, None]), ([None] * 3, [0, None, 0]),
         ([0, None, 1], [2, 4, 0])]


def moco_steps(rank: int | None = None) -> list[list[torch.Tensor]]:
    """Gradients and queue after each step, on a process's half of each batch, or on all of it."""
    model = moco(queue_len=17)
    model.backbone.eval()  # batch statistics differ between halves and whole; gradients must not
    model.encoder_k.eval()
    results = []
    for number, counts in enumerate(STEPS):
        inputs, data = views(6, seed=number), samples(counts[0] + counts[1], seed=number)
        if rank is not None:
            inputs = [view[3 * rank:3 * rank + 3] for view in inputs]
            data = data[3 * rank:3 * rank + 3]
        model.zero_grad()
        losses = model.loss(inputs, data)
        losses['loss'].backward()
        gradients = [parameter.grad for parameter in model.parameters()
                     if parameter.grad is not None]
        if rank is not None:
            for gradient in gradients:  # what DistributedDataParallel does
                dist.all_reduce(gradient)
                gradient /= dist.get_world_size()
        results.append(copy.deepcopy([*gradients, model.queue, model.queue_nouns,
                                      model.queue_ptr]))
    return results
