"""Runs a function in two gloo processes."""

from __future__ import annotations

import faulthandler
import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from freeatm_mm.miniature.processes import PRETRAINING


def in_two_processes(function: Callable[[int], object], folder: Path) -> list:
    """What `function(rank)` returns in each of two processes.

    Args:
        function: A function of an importable module; returns tensors, in lists or dicts.
        folder: Where the results may be written.
    """
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        port = server.getsockname()[1]
    # Forked from one that has the imports, which pretrainings of the miniature start as well.
    mp.get_context('forkserver').set_forkserver_preload(list(PRETRAINING))
    mp.start_processes(_worker, (function, port, str(folder)), nprocs=2, start_method='forkserver')
    return [torch.load(folder / f'{rank}.pt', weights_only=True) for rank in (0, 1)]


def _worker(rank: int, function: Callable[[int], object], port: int, folder: str) -> None:
    faulthandler.enable()  # a process that dies of a signal says where
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group('gloo', rank=rank, world_size=2)
    torch.save(function(rank), f'{folder}/{rank}.pt')
    dist.barrier()  # gloo may abort a process whose peer has left already
    dist.destroy_process_group()
