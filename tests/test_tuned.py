"""Tables of measurements: what they say of a call, which one is in force, what a broken one does."""

import json
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
import torch.nn.functional as T
from tables import BUILT, CPU, LARGE, SMALL, chosen, content, entry, needs_kernels, served

import fastdl
import fastdl.functional as F
from fastdl import backends, native, tuned
from fastdl.info import environment
from fastdl.tuned import Class

#: Max pooling: small images by our kernel, large ones by torch.
BY_SIZE = content(max_pool2d={"contiguous 2^4": entry("cpu", 3), "contiguous 2^16": entry("reference")})


# ---------------------------------------------------------------------------------------------------- classes


def meta(*shape, last=False):
    t = torch.empty(shape, device="meta")
    return t.contiguous(memory_format=torch.channels_last) if last else t


@pytest.mark.parametrize(
    "op, tensors, expected",
    [
        ("max_pool2d", [meta(1, 1, 1, 1)], "contiguous 2^0"),
        ("max_pool2d", [meta(1, 1, 3, 5)], "contiguous 2^0"),
        ("max_pool2d", [meta(1, 1, 4, 4)], "contiguous 2^4"),
        ("max_pool2d", [meta(1, 16, 256, 256)], "contiguous 2^20"),
        ("max_pool2d", [meta(2, 3, 8, 8, last=True)], "channels_last 2^8"),
        ("max_pool2d", [meta(2, 1, 8, 8, last=True)], "contiguous 2^4"),  # both
        ("max_pool2d", [meta(2, 3, 8, 8)[..., ::2]], "contiguous 2^4"),  # neither
        ("cross_entropy", [meta(64, 10), 3], "contiguous 2^8"),
        ("conv2d", [meta(2, 8, 9, 9), meta(8, 1, 3, 3)], "contiguous 2^8 depthwise"),
        ("conv2d", [meta(2, 1, 9, 9), meta(8, 1, 3, 3)], "contiguous 2^4 few"),
        ("conv2d", [meta(2, 16, 9, 9), meta(8, 8, 1, 1)], "contiguous 2^8 few"),
        ("conv2d", [meta(2, 16, 9, 9), meta(8, 16, 1, 1)], "contiguous 2^8 1x1"),
        ("conv2d", [meta(16, 9, 9), meta(8, 16, 3, 3)], "contiguous 2^8 dense"),
        ("conv2d_max_pool2d", [meta(2, 3, 9, 9), meta(8, 3, 3, 3)], "contiguous 2^8 few"),
        ("conv2d", [meta(2, 16, 9, 9), None], "contiguous 2^8 dense"),  # an error of the caller's
    ],
    ids=str,
)
def test_classes(op, tensors, expected):
    found = tuned.classify(op, *tensors)
    assert str(found) == expected and Class.parse(expected) == found


def test_a_symbolic_size_has_no_class():
    from torch.fx.experimental.proxy_tensor import make_fx

    seen = []
    make_fx(lambda x: seen.append(tuned.classify("max_pool2d", x)) or x + 1, tracing_mode="symbolic")(SMALL)
    assert seen == [None] and tuned.classify("max_pool2d", torch.empty(0, 1, 2, 2)) is None


def test_the_nearest_class(own):
    own(
        content(
            conv2d={
                "contiguous 2^8 few": entry("cpu"),
                "contiguous 2^16 few": entry("reference"),
                "channels_last 2^4 few": entry("reference"),
                "contiguous 2^8 dense": entry("reference"),
                "contiguous 2^20 dense": entry("cpu"),
            }
        )
    )
    table = tuned.table("cpu", None)

    def best(text, dtype=torch.float32):
        return table.ranking("conv2d", dtype, Class.parse(text))[:1]

    assert best("contiguous 2^8 few") == ("cpu",)
    assert best("contiguous 2^4 few") == ("cpu",)
    assert best("contiguous 2^20 few") == ("reference",)
    assert best("channels_last 2^20 few") == ("reference",)  # the layout before the size
    assert best("channels_last 2^8 dense") == ("reference",)  # the kind before the layout
    assert best("channels_last 2^20 dense") == ("cpu",)
    assert best("contiguous 2^8 few", torch.bfloat16) == ()
    assert table.ranking("conv2d", torch.float32)[0] == "reference"  # of most


# --------------------------------------------------------------------------------------------- what is chosen


@needs_kernels
def test_a_table_decides_by_size(own):
    path = own(BY_SIZE)
    assert chosen(SMALL).backend == "cpu" and chosen(LARGE).backend == "reference"
    assert chosen(SMALL).reason == chosen(LARGE).reason == f"measured: {path}"
    assert served(SMALL) == ["cpu"] and served(LARGE) == ["reference"]
    assert chosen().backend == "cpu" and "of most shapes" in chosen().reason  # explain has no call to look at
    assert chosen(SMALL.bfloat16()).reason == chosen(op="batch_norm").reason  # what it does not know
    assert "bench/results" in chosen(op="batch_norm").reason


@needs_kernels
def test_the_short_way_goes_by_size_too(own, monkeypatch):
    own(BY_SIZE)
    expected = [T.max_pool2d(x, 2) for x in (SMALL, LARGE)]
    reference = []
    monkeypatch.setattr(
        fastdl.reference, "max_pool2d", lambda x, *_: reference.append(x) or T.max_pool2d(x, 2)
    )
    assert torch.equal(F.max_pool2d(SMALL, 2), expected[0]) and not reference
    assert torch.equal(F.max_pool2d(LARGE, 2), expected[1]) and len(reference) == 1


@needs_kernels
def test_arguments_that_are_wrong_are_worded_as_ever(own):
    kinds = {"contiguous 2^4 few": entry("cpu"), "contiguous 2^16 dense": entry("reference")}
    own(content(conv2d=kinds, conv2d_max_pool2d=kinds))
    for function in (F.conv2d, lambda *args: F.conv2d_max_pool2d(*args, pool_kernel_size=2)):
        with pytest.raises(TypeError, match="weight to be a Tensor"):
            function(SMALL, None)
        with pytest.raises(RuntimeError, match="weight of shape"):
            function(SMALL, torch.ones(3))


@needs_kernels
@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_conv2d_max_pool2d_has_its_own_entry(own, name):
    path = own(content(conv2d_max_pool2d={"contiguous 2^8 few": entry(name)}))
    weight, x = torch.randn(6, 2, 3, 3), torch.randn(2, 2, 26, 26)
    with backends.record() as choices:
        out = F.conv2d_max_pool2d(x, weight, pool_kernel_size=2)
    assert {c.op for c in choices} == {"conv2d", "max_pool2d"}
    whole = choices[0].reason == f"measured: {path}"  # else as two ops, each its own choice
    assert whole == (name == "cpu")
    torch.testing.assert_close(out, T.max_pool2d(T.conv2d(x, weight), 2))


@needs_kernels
def test_one_answer_costs_nothing(own, monkeypatch):
    """No call is looked at, and the C++ function is called as it is."""
    own(
        content(
            max_pool2d={"contiguous 2^4": entry("cpu"), "contiguous 2^16": entry("cpu", reference=9, cpu=1)}
        )
    )
    monkeypatch.setattr(tuned, "classify", lambda *_: pytest.fail("a call was looked at"))
    assert chosen(SMALL).backend == chosen(LARGE).backend == "cpu"
    assert backends.short_way("max_pool2d", CPU, torch.float32)[0] is native.call("max_pool2d")
    F.max_pool2d(SMALL, 2)


def test_a_backend_that_is_named_is_served_by_name(own):
    own(content(max_pool2d={"contiguous 2^4": entry("reference"), "contiguous 2^16": entry("cpu")}))
    for name in ("reference", *(["cpu"] if BUILT else [])):
        with fastdl.use_backend(name):
            assert served(SMALL) == served(LARGE) == [name]
            assert chosen(SMALL).reason == "chosen by name"


def test_the_next_best_serves_where_the_best_is_missing(own, monkeypatch):
    path = own(content("cuda", max_pool2d={"contiguous 2^4": entry("cuda", cuda=1, reference=1.2, triton=2)}))
    order = backends.order("max_pool2d", "cuda", torch.float32, None, tuned.read(path))
    assert [backend for backend, _ in order[:3]] == ["cuda", "reference", "triton"]  # not as _AUTO has them


@needs_kernels
def test_compile_takes_what_is_best_for_most(own):
    """One graph for all sizes: nothing is asked of them."""
    own(BY_SIZE)
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda x: F.max_pool2d(x, 2), backend=keep, fullgraph=True, dynamic=True)
    for x in (torch.randn(2, 3, 8, 10), torch.randn(4, 8, 64, 62), torch.randn(3, 5, 30, 20)):
        assert torch.equal(compiled(x), T.max_pool2d(x, 2))
    (graph,) = graphs
    assert torch.ops.fastdl.max_pool2d_forward.default in {node.target for node in graph.graph.nodes}


def test_a_table_is_read_at_the_first_choice_and_once(own, monkeypatch):
    own(content(max_pool2d={"contiguous 2^4": entry("reference")}))
    read, paths = tuned.read, []
    monkeypatch.setattr(tuned, "read", lambda path: paths.append(path) or read(path))
    for x in (SMALL, LARGE, SMALL.bfloat16()):
        F.max_pool2d(x, 2)
    F.batch_norm(SMALL, None, None, training=True)
    assert len(paths) == 1


def test_importing_reads_no_table(own):
    path = own("not a table")
    code = """
        import sys, torch, fastdl
        print("imported", file=sys.stderr)
        fastdl.functional.max_pool2d(torch.ones(1, 1, 2, 2), 2)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.startswith("imported\n") and done.stderr.count(str(path)) == 1


# -------------------------------------------------------------------------------------- which one is in force


@needs_kernels
def test_the_users_own_goes_before_ours(own, folder):
    assert tuned.table("cpu", None) is None and "bench/results" in chosen(SMALL).reason
    brought = folder / "brought" / "cpu.json"
    brought.write_text(json.dumps(content(max_pool2d={"contiguous 2^4": entry("reference")})))
    backends.forget()
    assert chosen(SMALL) == ("max_pool2d", "reference", f"measured: {brought}")
    path = own(content(max_pool2d={"contiguous 2^4": entry("cpu")}))
    assert chosen(SMALL) == ("max_pool2d", "cpu", f"measured: {path}")
    with backends.untuned():
        assert "bench/results" in chosen(SMALL).reason
    assert chosen(SMALL).reason == f"measured: {path}"


def test_where_the_users_own_is(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTDL_CACHE_DIR", str(tmp_path))
    assert tuned.user_path("NVIDIA H100 80GB HBM3", "sm_90") == tmp_path / "nvidia-h100-80gb-hbm3-sm-90.json"
    monkeypatch.delenv("FASTDL_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuned.cache_folder() == tmp_path / "fastdl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert tuned.cache_folder() == tmp_path / "home" / ".cache" / "fastdl"


GOOD = content(max_pool2d={"contiguous 2^4": entry("reference")})
BROKEN = {
    "empty": "",
    "cut off": json.dumps(GOOD)[:-9],
    "a list": "[]",
    "nested": "[" * 100_000,
    "bytes": "\udcff\udcfe",
    "another schema": json.dumps({**GOOD, "schema": "fastdl.tuned/9"}),
    "no schema": "{}",
    "another kind": json.dumps({**GOOD, "kind": "tpu"}),
    "of a GPU": json.dumps({**GOOD, "kind": "cuda"}),
    "no such backend": json.dumps(content(max_pool2d={"contiguous 2^4": entry("cudnn", cudnn=1)})),
    "of no evidence": json.dumps(content(max_pool2d={"contiguous 2^4": entry("cpu", reference=1)})),
    "a backend of a GPU": json.dumps(content(max_pool2d={"contiguous 2^4": entry("triton", triton=1)})),
    "no class": json.dumps(content(max_pool2d={"contiguous": entry("cpu")})),
    "ratios of words": json.dumps(content(max_pool2d={"contiguous 2^4": entry("cpu", cpu="fast")})),
    "ops of words": json.dumps({**GOOD, "ops": {"max_pool2d": "cpu"}}),
}


@pytest.mark.parametrize("what", [*BROKEN, "a folder"])
def test_a_broken_table_is_ignored_with_one_warning(folder, what):
    path = tuned.user_path(*tuned.device("cpu", None))
    if what == "a folder":
        path.mkdir()
    else:
        path.write_bytes(BROKEN[what].encode(errors="surrogateescape"))
    with pytest.warns(UserWarning, match="a table is ignored") as seen:
        F.max_pool2d(SMALL, 2)
        F.max_pool2d(LARGE, 2)
        F.max_pool2d(SMALL.bfloat16(), 2)
    assert len(seen) == 1 and str(path) in str(seen[0].message)
    assert chosen(SMALL).backend == ("cpu" if BUILT else "reference")


def test_info_says_which(own):
    assert environment()["tables"]["table (cpu)"].startswith("none")
    path = own(GOOD)
    assert environment()["tables"]["table (cpu)"] == str(path)
    with backends.untuned():
        assert environment()["tables"]["table (cpu)"].startswith("none")


def test_no_warnings_without_a_table(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        F.max_pool2d(SMALL, 2)
