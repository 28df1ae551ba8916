"""pytorch#197888: backward of a pool read indices that were not contiguous as if they were."""

import pytest
import torch
from support import KERNEL_BACKENDS

from fastdl.ops.max_pool2d import backward_op

WINDOW = ((3, 3), (2, 2), (1, 1), (1, 1))


def check(backward, device):
    grad = torch.randn(2, 4, 4, 4).to(device)
    # the cells of a window that no edge of the image cuts off
    inside = torch.tensor([4, 5, 7, 8], dtype=torch.uint8)
    offsets = inside[torch.randint(len(inside), (2, 4, 4, 4))].to(device)
    offsets[:, :, -1] = offsets[:, :, :, -1] = 4
    for strided in (
        offsets.to(memory_format=torch.channels_last),
        offsets.transpose(2, 3).contiguous().transpose(2, 3),
        torch.stack([offsets, offsets + 1], -1)[..., 0],
    ):
        assert torch.equal(backward(grad, strided), backward(grad, offsets))


@pytest.mark.parametrize("kernel", KERNEL_BACKENDS)
def test_offsets_of_any_strides(kernel, device):
    check(lambda grad, offsets: backward_op(grad, offsets, (2, 4, 7, 7), False, *WINDOW, kernel), device)


def test_seen():
    def as_if_contiguous(grad, offsets):
        dense = torch.empty(offsets.shape, device="meta").stride()
        cells = offsets.as_strided(offsets.shape, dense).long()
        return grad.new_zeros(2, 4, 16).scatter_add(2, cells.flatten(2), grad.flatten(2))

    with pytest.raises(AssertionError):
        check(as_if_contiguous, "cpu")
