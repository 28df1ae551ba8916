"""How many test cases stand behind each promise, per op: `python tests/contract.py` (collects, runs nothing).

    python tests/contract.py --slow     the slow lane counted too

A case counts for a promise if its id matches one of the promise's patterns (docs/contract.md says what each
promise is), and for an op if its id names the op; "all" is what is not of one op.
"""

import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
OPS = ("conv2d", "batch_norm", "cross_entropy", "max_pool2d", "affine_grid_sample", "tps_grid_sample")

#: Promise: what the ids of its cases match.
PROMISES = {
    "arguments": r"test_parity|test_functional|test_nn\b|activation|reduction|shapes_and_targets|every_rule",
    "any call (fuzz; a case is thousands)": r"test_fuzz",
    "64-bit indexing": r"64_bit|wide_offsets|68418|2_to_the_31|189664",
    "grid limits": r"16998",
    "empties": r"empty|nothing_to_do|83325|12013",
    "layouts and offsets": r"layout|strides|strided|expanded|channels_last|67167|188344|197888",
    "incoming gradients": r"incoming_gradient|expanded_gradient|194719|liger_421",
    "misalignment, canaries": r"surroundings|misaligned|stays_within|151589|every_end|reads_or_writes",
    "NaN, infinity, targets": r"_nan|infinit|ignore|target|literals|7645|40131|35202|116349|15508|optax",
    "no input modified": r"never_modified|272|6332|twice|inplace_abn_6|changed_in_place",
    "numerics": r"large_mean|drifting|huge|constant|cancel|far_from|45968|162489|attorch|147303|89836",
    "determinism": r"determin|bit_for_bit|repeat|repetition|same_bits|changes_no_bit|68959",
    "streams, devices, graphs": r"test_gpu",
    "autocast": r"autocast|47906",
    "checkpoint, memory": r"checkpoint|5569|saves_nothing|memory",
    "distributed": r"distributed|64039",
    "compile, fake": r"test_compile|opcheck|223|194504",
    "functorch, double backward": r"second_derivative|gradcheck|forward_mode|functorch|vmap|34704",
    "copy, pickle": r"pickle|xformers",
    "threads": r"thread|11494",
    "uninitialised": r"uninitialised|1338|unwritten",
    "bad input": r"test_errors|raises|refuse|12670|missing",
    "regressions by name": r"regressions",
}


class Collected:
    """The items of a collection."""

    items: tuple = ()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = tuple(session.items)


def op_of(node: str) -> str:
    """The op that a test's id names; the longest, as one op's name may begin another's."""
    return max((op for op in OPS if re.search(rf"{op}(?!_max)", node)), key=len, default="all")


def counts(nodes: list[str]) -> dict[str, Counter]:
    """Cases by promise and op."""
    return {
        promise: Counter(op_of(node) for node in nodes if re.search(pattern, node))
        for promise, pattern in PROMISES.items()
    }


def collect(slow: bool) -> list[str]:
    found = Collected()
    marked = [] if slow else ["-m", "not slow"]
    pytest.main(["--collect-only", "-qq", "--no-header", str(ROOT / "tests"), *marked], plugins=[found])
    return [item.nodeid for item in found.items]


def main() -> None:
    nodes = collect(slow="--slow" in sys.argv)
    table = Table("promise", *OPS, "all", title=f"{len(nodes)} cases")
    for column in table.columns[1:]:
        column.justify = "right"
    for promise, count in counts(nodes).items():
        table.add_row(promise, *(str(count[op] or "-") for op in (*OPS, "all")))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
