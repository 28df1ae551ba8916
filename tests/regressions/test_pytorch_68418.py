"""pytorch#68418, #52822, #84018, #167253, #41656, #85786, #90793, triton#1058, #832, fla P#1082, megablocks
P#185: offsets computed in 32 bits. A tensor whose images lie 2**31 elements apart needs address space, no
memory."""

import pytest
import torch
from calls import CALLS, leaves
from support import KERNEL_BACKENDS

from fastdl import backends

FAR = 2**31 + 64
ON_IMAGES = [name for name in CALLS if len(CALLS[name].out) == 4]


def far_apart(x):
    """``x`` [2, ...] with its second image 2**31 elements behind the first."""
    storage = torch.empty(FAR + x[0].numel() + 64, dtype=torch.bfloat16, device=x.device)
    return storage.as_strided(x.shape, (FAR, *x.contiguous().stride()[1:])).copy_(x)


def check(call):
    torch.manual_seed(0)
    near = [t.detach() for t in leaves(call, torch.device("cpu"), torch.bfloat16)]
    far = [far_apart(near[0]), *near[1:]]
    assert torch.equal(call.function(*far), call.function(*near))


@pytest.mark.parametrize("kernel", KERNEL_BACKENDS)
@pytest.mark.parametrize("name", ON_IMAGES)
def test_images_far_apart(name, kernel, device):
    if device.type == "cuda":
        pytest.skip("test_gpu.py has tensors of that size")
    with backends.use_backend(kernel):
        check(CALLS[name])


def test_seen():
    def in_32_bits(x):
        wrapped = (x.stride(0) + 2**31) % 2**32 - 2**31  # what int holds of it: negative
        offset = wrapped % x[0].numel()  # some other place
        return x.as_strided(x.shape, (offset, *x.stride()[1:])).relu()

    with pytest.raises(AssertionError):
        check(CALLS["max_pool2d"]._replace(function=in_32_bits))
