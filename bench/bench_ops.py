"""The cases of ``fastdl bench`` through pytest-benchmark: ``pytest bench``."""

import pytest
import torch
from fastdl.bench import DEFAULT, PEERS, cases, keep_heap
from fastdl.bench.runner import check, run

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
JOBS = {
    f"{case.op} {case.name} {case.layout} {direction}": (case, direction)
    for case in cases(DEVICE)
    for direction in case.directions
}


@pytest.mark.parametrize("peer", DEFAULT[DEVICE.type])
@pytest.mark.parametrize("job", JOBS)
def test_case(benchmark, job, peer):
    case, direction = JOBS[job]
    reason = PEERS[peer].why_not(case, direction, DEVICE)
    if reason:
        pytest.skip(reason)
    keep_heap()
    function, inputs = PEERS[peer].make(case), case.draw(DEVICE, DTYPE)
    error, failure = check(case, function, inputs, direction)
    assert not failure, f"not timed, the result is wrong: {failure}"
    call = run(case, function, inputs, direction)

    def timed() -> None:
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.extra_info |= {"op": case.op, "layout": case.layout, "direction": direction, "error": error}
    benchmark.pedantic(timed, rounds=20, warmup_rounds=3, iterations=1)
