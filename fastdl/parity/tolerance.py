"""The one rule by which fastdl's numbers are judged.

Against a float64 oracle on the same values, our error may be at most twice that of PyTorch's own op in the
same dtype, plus one rounding of that dtype; NaN and Inf stand in exactly the places where PyTorch has them.
Where PyTorch itself overflows (its value is not finite, the oracle's, rounded to the dtype, is), the finite
value is right as well; where it is NaN and the oracle beyond the dtype, so is the infinity.
The rule needs no constants per op: reductions, half precision and cancellation move PyTorch's error as they
move ours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Verdict(NamedTuple):
    """Largest absolute errors against the oracle, and whether ours is within the rule ("" says yes)."""

    error: float
    torch_error: float
    failure: str


def judge(ours: Tensor, torchs: Tensor, oracle: Tensor) -> Verdict:
    """Hold ``ours`` against ``torchs`` (PyTorch, same dtype) and ``oracle`` (float64), all of one shape."""
    if ours.shape != torchs.shape or ours.dtype != torchs.dtype:
        got, wanted = (f"{list(t.shape)} {t.dtype}" for t in (ours, torchs))
        return Verdict(float("inf"), 0.0, f"got {got}, torch gives {wanted}")
    if ours.numel() == 0:
        return Verdict(0.0, 0.0, "")
    dtype, rounding = torchs.dtype, torch.finfo(torchs.dtype).eps
    where = ours.device if ours.is_cuda else "cpu"  # elsewhere there may be no float64
    ours, torchs, oracle = (t.detach().to(where, torch.float64) for t in (ours, torchs, oracle))
    rounded = oracle.to(dtype).double()
    overflowed = ~torch.isfinite(torchs) & torch.isfinite(rounded) & torch.isfinite(ours)
    overflowed |= torch.isnan(torchs) & torch.isinf(rounded) & (ours == rounded)
    for what, test in (("NaN", torch.isnan), ("+Inf", torch.isposinf), ("-Inf", torch.isneginf)):
        wrong = (test(ours) != test(torchs)) & ~overflowed
        if wrong.any():
            return Verdict(
                float("inf"), 0.0, f"{what} misplaced in {int(wrong.sum())} of {ours.numel()} elements"
            )
    finite = torch.isfinite(ours) & torch.isfinite(oracle)
    if not finite.any():
        return Verdict(0.0, 0.0, "")
    ours, torchs, oracle = ours[finite], torchs[finite], oracle[finite]
    error, torchs_errors = (ours - oracle).abs(), (torchs - oracle).abs()
    torch_error = float(torchs_errors.nan_to_num(0.0, posinf=0.0).max())
    excess = error - (2 * torch_error + rounding * oracle.abs())
    worst = float(error.max())
    if float(excess.max()) <= 0:
        return Verdict(worst, torch_error, "")
    at = int(excess.argmax())
    return Verdict(
        worst,
        torch_error,
        f"{ours[at]:.9g} where the oracle has {oracle[at]:.9g} (torch errs by {torch_error:.3g} at most)",
    )
