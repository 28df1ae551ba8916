"""The pools of VGG (2x2) and of ResNet's stem (3x3 stride 2), both layouts."""

import pytest
from measure import directions, image, implementations, measure

POOLS = {
    "2x2 64@112": ((64, 64, 112, 112), {"kernel_size": 2}),
    "3x3s2 64@112": ((64, 64, 112, 112), {"kernel_size": 3, "stride": 2, "padding": 1}),
}


@implementations
@directions
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("pool", POOLS)
def test_max_pool2d(benchmark, pool, channels_last, direction, implementation):
    size, options = POOLS[pool]
    inputs = {"input": image(*size, channels_last=channels_last)}
    measure(benchmark, "max_pool2d", inputs, ("input",), implementation, direction, **options)
