"""A converted model under DistributedDataParallel: two processes, gloo."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import fastdl
from fastdl.models import resnet8


def batch(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    images = torch.randn(4, 1, 12, 12, generator=generator)
    return images, torch.randint(10, (4,), generator=generator)


def gradients(model: torch.nn.Module, rank: int) -> list[torch.Tensor]:
    images, labels = batch(rank)
    fastdl.functional.cross_entropy(model(images), labels).backward()
    return [p.grad for p in model.parameters()]


def worker(rank: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    wrapped = torch.nn.parallel.DistributedDataParallel(fastdl.convert(resnet8()))
    averaged = gradients(wrapped, rank)
    dist.destroy_process_group()

    alone = []
    for each in range(2):
        torch.manual_seed(0)
        alone.append(gradients(resnet8(), each))
    for got, a, b in zip(averaged, *alone, strict=True):
        torch.testing.assert_close(got, (a + b) / 2)


@pytest.mark.slow
def test_gradients_are_averaged():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port,), nprocs=2)
