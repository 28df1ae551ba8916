"""cuEquivariance#223, pytorch#186850, #119348: under torch.compile the fake output had other strides than
the real one: an assertion, or reads out of bounds."""

import pytest
import torch
from calls import CALLS, leaves
from support import KERNEL_BACKENDS
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdl import backends, parity


def check(call, layout, device):
    inputs = [t.detach() for t in leaves(call, torch.device(device))]
    inputs[0] = parity.lay_out(inputs[0], layout)
    real = call.function(*inputs)
    with FakeTensorMode() as mode:
        fake = call.function(*(mode.from_tensor(t) for t in inputs))
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


def otherwise_when_fake(x):
    fake = type(x) is not torch.Tensor
    return x.new_empty(x.shape) if fake else torch.relu(x)


@pytest.mark.parametrize("name", [name for name in CALLS if len(CALLS[name].out) == 4])
@pytest.mark.parametrize("layout", parity.LAYOUTS)
@pytest.mark.parametrize("kernel", KERNEL_BACKENDS)
def test_fake_is_as_real(name, layout, kernel, device):
    with backends.use_backend(kernel):
        check(CALLS[name], layout, device)


def test_seen():
    with pytest.raises(AssertionError):
        check(CALLS["max_pool2d"]._replace(function=otherwise_when_fake), "channels_last", "cpu")
