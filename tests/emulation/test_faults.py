"""Every planted fault (faults/) is seen in the builds that can see it, and its sound twin in none."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from emulation import build

FAULTS = Path(__file__).parent / "faults"

#: fault -> what each build says. A build that is not named is blind to the fault (or sees it only by luck).
#: `races` is tsan with the blocks of a launch not ordered among each other.
WRONG = "returned: wrong"
RACE = r"data race .*{fault}\.cu"
CAUGHT: dict[str, dict[str, str]] = {
    "global_bounds": {"asan": r"heap-buffer-overflow .*global_bounds\.cu:9 "},
    "static_shared_bounds": {
        "asan": r"static_shared_bounds\.cu:7:.* insufficient space|global-buffer-overflow"
    },
    "dynamic_shared_bounds": {
        "asan": r"heap-buffer-overflow .*dynamic_shared_bounds\.cu:10 ",
        "plain": "wrote past its 400 bytes of dynamic shared memory",
        "tsan": "wrote past its 400 bytes of dynamic shared memory",
    },
    "misaligned_load": {"asan": "misaligned address"},
    "missing_barrier_read_after_write": {"plain": WRONG, "tsan": RACE, "races": RACE},
    "missing_barrier_write_after_read": {"tsan": RACE, "races": RACE},
    "missing_syncwarp": {"plain": WRONG, "tsan": RACE, "races": RACE},
    "missing_fence": {"races": RACE},
    "plain_counter_reset": {"races": RACE},
    "unwritten_output": {"plain": WRONG, "asan": WRONG, "tsan": WRONG},
    "uninitialised_shared": {"plain": WRONG, "asan": WRONG, "tsan": WRONG},
    "missing_cluster_barrier": {"plain": WRONG, "tsan": RACE, "races": RACE},
    "cluster_left_early": {"plain": WRONG, "asan": "of its cluster, which has exited", "tsan": WRONG},
} | {
    name: dict.fromkeys(("plain", "asan", "tsan", "races"), "returned: .*" + message)
    for name, message in {
        "divergent_barrier": r"deadlock: 50 wait at __syncthreads \(.*divergent_barrier\.cu:10\)",
        "two_barriers": "wait at another one",
        "exited_lanes": "has exited",
        "too_much_shared": "fill: 49168 bytes of dynamic shared memory, 49152 being allowed",
        "far_too_much_shared": "232449 bytes of dynamic shared memory, a block having at most 232448",
        "too_many_threads": r"fill: blocks of \(32, 33, 1\) threads, of at most 1024",
        "waits_for_a_later_block": "waits in a loop for something that does not happen",
    }.items()
}


EXPORT = re.compile(r"FASTDL_EXPORT .*?(\w+)\(")


@pytest.fixture(scope="session")
def call():
    """call(build, fault, faulty, order) -> exit status and everything that was said."""
    built = {}

    def call(mode, fault, faulty, order="forward"):
        sanitizer = "tsan" if mode == "races" else mode
        if sanitizer not in built:
            library = build.build(sanitizer, sorted(FAULTS.glob("*.cu")), "faults")
            built[sanitizer] = build.program(FAULTS / "main.cc", sanitizer), library
        environment = {
            **os.environ,
            **build.OPTIONS[sanitizer],
            "FASTDL_EMULATION_ORDER": order,
            "FASTDL_EMULATION_UNORDERED": "1" if mode == "races" else "0",
        }
        command = [*built[sanitizer], fault, str(int(faulty))]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        return run.returncode, run.stdout + run.stderr

    return call


def check_sound(call, mode, order):
    for fault in CAUGHT:
        status, text = call(mode, fault, faulty=False, order=order)
        assert status == 0, f"{fault}: {text}"


def test_every_fault_is_listed():
    exported = [name for p in FAULTS.glob("*.cu") for name in EXPORT.findall(p.read_text())]
    assert sorted(exported) == sorted(CAUGHT)


@pytest.mark.parametrize(
    ("fault", "mode"),
    [(fault, mode) for fault, seen in CAUGHT.items() for mode in seen],
    ids=lambda name: name,
)
def test_fault_is_seen(call, fault, mode):
    status, text = call(mode, fault, faulty=True)
    assert status != 0, text
    assert re.search(CAUGHT[fault][mode].format(fault=fault), text), text


@pytest.mark.parametrize("mode", ["plain", "asan", "tsan", "races"])
def test_sound_twins_are_clean(call, mode):
    check_sound(call, mode, "random")


@pytest.mark.slow
@pytest.mark.parametrize("order", ["forward", "backward"])
@pytest.mark.parametrize("mode", ["plain", "asan", "tsan", "races"])
def test_sound_twins_are_clean_in_every_order(call, mode, order):
    check_sound(call, mode, order)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["backward", "random"])
@pytest.mark.parametrize("fault", CAUGHT)
def test_faults_are_seen_in_every_order(call, fault, order):
    for mode, wanted in CAUGHT[fault].items():
        status, text = call(mode, fault, faulty=True, order=order)
        assert status != 0 and re.search(wanted.format(fault=fault), text), (mode, text)
