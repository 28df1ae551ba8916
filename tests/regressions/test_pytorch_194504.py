"""pytorch#194504, open in torch 2.13: batch norm with momentum=None breaks the graph, for a number that
depends on the count of batches."""

import pytest
import torch

import fastdl


def check(make, device):
    torch._dynamo.reset()
    stock, ours = torch.nn.BatchNorm2d(3, momentum=None).to(device), make(3, momentum=None).to(device)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        x = torch.randn(2, 3, 4, 4, device=device)
        torch.testing.assert_close(compiled(x), stock(x))
    for name, value in stock.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


class AsNumber(torch.nn.BatchNorm2d):
    def forward(self, x):
        self.num_batches_tracked += 1
        momentum = 1 / self.num_batches_tracked.item()
        statistics = self.running_mean, self.running_var
        return torch.nn.functional.batch_norm(x, *statistics, self.weight, self.bias, True, momentum)


def test_compiled_whole(on, device):
    check(fastdl.nn.BatchNorm2d, device)


def test_seen():
    with pytest.raises((AssertionError, torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError)):
        check(AsNumber, "cpu")
