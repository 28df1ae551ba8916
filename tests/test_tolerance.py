"""The rule itself: what it lets through and what it does not."""

import pytest
import torch

from fastdl.parity import judge

ORACLE = torch.linspace(-2, 2, 101, dtype=torch.float64)
TORCH = ORACLE.float()


def test_equal_passes():
    assert judge(TORCH, TORCH, ORACLE).failure == ""


def test_twice_torchs_error_passes_and_more_does_not():
    torchs = TORCH.clone()
    torchs[7] += 1e-3
    ours = TORCH.clone()
    ours[50:52] += 1.9e-3
    assert judge(ours, torchs, ORACLE).failure == ""
    ours[50] += 0.2e-3
    assert "torch errs by" in judge(ours, torchs, ORACLE).failure


def test_one_rounding_is_of_the_dtype():
    oracle = torch.tensor([1.0], dtype=torch.float64)
    for dtype, step in ((torch.bfloat16, 2**-7), (torch.float16, 2**-10), (torch.float32, 2**-23)):
        exact = oracle.to(dtype)
        assert judge(exact + step, exact, oracle).failure == ""
        assert judge(exact + 2 * step, exact, oracle).failure != ""


@pytest.mark.parametrize("special", [float("nan"), float("inf"), float("-inf")])
def test_special_values_stand_where_torch_has_them(special):
    torchs = TORCH.clone()
    torchs[3] = special
    assert judge(torchs.clone(), torchs, ORACLE).failure == ""
    oracle = ORACLE.clone()
    oracle[3] = special
    assert "misplaced" in judge(TORCH, torchs, oracle).failure
    assert "misplaced" in judge(torchs, TORCH, ORACLE).failure


def test_shape_and_dtype_must_agree():
    assert "torch gives" in judge(TORCH[:-1], TORCH, ORACLE).failure
    assert "torch gives" in judge(TORCH.half(), TORCH, ORACLE).failure


def test_where_torch_overflows_the_finite_value_is_right_too():
    torchs = TORCH.clone()
    torchs[3] = float("inf")
    assert "misplaced" in judge(TORCH, torchs, ORACLE * 1e39).failure  # it is not finite in float32
    assert judge(TORCH, torchs, ORACLE).failure == ""
    wrong = TORCH.clone()
    wrong[3] += 1
    assert "where the oracle has" in judge(wrong, torchs, ORACLE).failure


def test_where_torch_is_nan_for_an_overflow_the_infinity_is_right_too():
    """Half precision: 0 times a sum that overflowed."""
    torchs, oracle, ours = TORCH.half(), ORACLE.clone(), TORCH.half()
    torchs[3], oracle[3], ours[3] = float("nan"), 1e5, float("inf")
    assert judge(ours, torchs, oracle).failure == ""
    for wrong in (-float("inf"), 1.0):
        ours[3] = wrong
        assert "misplaced" in judge(ours, torchs, oracle).failure
    oracle[3], ours[3] = float("nan"), float("inf")
    assert "misplaced" in judge(ours, torchs, oracle).failure
