"""Activations inside kernels: y = act(x), and dx = dy * act'(x) from y or from x, whichever is at hand.

``ACT`` is the name as ``fastdl.activations`` lists it ("" for none), ``param`` its float parameter
(negative_slope of leaky_relu, alpha of elu). All arithmetic is in float32. NaN passes through every
forward, as in torch, which is why none of them uses ``tl.maximum`` (it drops NaN).
"""

import triton
import triton.language as tl


@triton.jit
def activate(x, param, ACT: tl.constexpr):
    """act(x) for float32 ``x``."""
    if ACT == "relu":
        x = tl.where(x < 0.0, 0.0, x)
    elif ACT == "leaky_relu":
        x = tl.where(x > 0.0, x, x * param)
    elif ACT == "elu":
        x = tl.where(x <= 0.0, param * _expm1(x), x)
    elif ACT == "sigmoid":
        x = _sigmoid(x)
    elif ACT == "tanh":
        x = _tanh(x)
    elif ACT == "softplus":
        x = tl.where(x > 20.0, x, _softplus(x))
    return x


@triton.jit
def activation_grad(dy, y, param, ACT: tl.constexpr):
    """dy * act'(x) from the output ``y`` (both float32)."""
    if ACT == "relu":
        dy = tl.where(y <= 0.0, 0.0, dy)
    elif ACT == "leaky_relu":
        dy = tl.where(y > 0.0, dy, dy * param)
    elif ACT == "elu":
        dy = tl.where(y <= 0.0, dy * (y + param), dy)
    elif ACT == "sigmoid":
        dy = dy * (1.0 - y) * y
    elif ACT == "tanh":
        dy = dy * (1.0 - y * y)
    elif ACT == "softplus":
        dy = tl.where(y > 20.0, dy, -dy * _expm1(-y))
    return dy


@triton.jit
def activation_grad_at(dy, x, param, ACT: tl.constexpr):
    """dy * act'(x) from the pre-activation ``x`` (both float32).

    Where x is at hand it is the better source: close to saturation 1 - y * y is mostly the rounding of y.
    """
    if ACT == "relu":
        dy = tl.where(x <= 0.0, 0.0, dy)
    elif ACT == "leaky_relu":
        dy = tl.where(x > 0.0, dy, dy * param)
    elif ACT == "elu":
        dy = tl.where(x <= 0.0, dy * (param * tl.exp(x)), dy)
    elif ACT == "sigmoid":
        e = tl.exp(-tl.abs(x))
        dy = dy * (e / ((1.0 + e) * (1.0 + e)))
    elif ACT == "tanh":
        e = tl.exp(-2.0 * tl.abs(x))
        dy = dy * (4.0 * e / ((1.0 + e) * (1.0 + e)))
    elif ACT == "softplus":
        dy = tl.where(x > 20.0, dy, dy * _sigmoid(x))
    return dy


@triton.jit
def _expm1(x):
    """exp(x) - 1 without cancellation: the series below 1 in magnitude, exp elsewhere."""
    series = 1.0 + x / 10.0 * (1.0 + x / 11.0 * (1.0 + x / 12.0))
    series = 1.0 + x / 7.0 * (1.0 + x / 8.0 * (1.0 + x / 9.0 * series))
    series = 1.0 + x / 4.0 * (1.0 + x / 5.0 * (1.0 + x / 6.0 * series))
    series = x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * series))
    return tl.where(tl.abs(x) < 1.0, series, tl.exp(x) - 1.0)


@triton.jit
def _log1p(x):
    """log(1 + x) for 0 <= x <= 1, correcting the rounding of 1 + x."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / (u - 1.0)))


@triton.jit
def _sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0.0, 1.0 / (1.0 + e), e / (1.0 + e))


@triton.jit
def _tanh(x):
    """tanh to about one unit in the last place: its series below 0.55 in magnitude, exp elsewhere."""
    z = x * x
    series = -929569.0 / 638512875.0 + z * (6404582.0 / 10854718875.0)
    series = -1382.0 / 155925.0 + z * (21844.0 / 6081075.0 + z * series)
    series = -17.0 / 315.0 + z * (62.0 / 2835.0 + z * series)
    series = x + x * z * (-1.0 / 3.0 + z * (2.0 / 15.0 + z * series))
    e = tl.exp(-2.0 * tl.abs(x))
    y = 1.0 - 2.0 * e / (1.0 + e)
    return tl.where(z < 0.3025, series, tl.where(x < 0.0, -y, y))


@triton.jit
def _softplus(x):
    positive = tl.where(x < 0.0, 0.0, x)
    return positive + _log1p(tl.exp(-tl.abs(x)))
