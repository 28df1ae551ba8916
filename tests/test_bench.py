"""``fastdl bench``: nothing wrong is timed, a peer that crashes is a line, an interruption loses nothing."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch
import torch.nn.functional as T
from fastdl.bench import command, conv2d, page, peers, picture, report, runner, sweep, tables, timers
from fastdl.bench.case import Case, Goal, Work
from torch._subclasses.fake_tensor import FakeTensorMode
from typer.testing import CliRunner

from fastdl import bench, cli
from fastdl.parity.cases import randn

CPU = torch.device("cpu")
CASE = Case(
    "max_pool2d",
    "small",
    {"input": randn(1, 2, 8, 8)},
    T.max_pool2d,
    lambda tensors, options, direction: Work(1000, 2000),
    {"kernel_size": 2},
    directions={"forward": Goal(0.001, 0.001), "both": None},
)


@pytest.fixture
def small(monkeypatch):
    """The tables of a CPU are one small case."""
    monkeypatch.setattr(bench, "cases", lambda device, ops=(), names=(): iter([CASE]))
    monkeypatch.setattr(command, "cases", bench.cases)


def peer(monkeypatch, function, name="odd"):
    monkeypatch.setitem(peers.PEERS, name, peers.Peer(name, "", lambda *_: None, lambda case: function))
    return name


def rows(direction, *names, case=CASE):
    found = runner.measure(case, direction, CPU, torch.float32, names, seconds=0.0)
    return {row.implementation: row for row in found}


@pytest.mark.parametrize("device", [CPU, torch.device("cuda")], ids=str)
def test_the_tables_are_sound(device):
    found = list(bench.cases(device))
    assert {case.op for case in found} == set(bench.OPS)
    keys = [(case.op, case.name, case.layout) for case in found]
    assert len(set(keys)) == len(keys)
    assert all(set(case.directions) <= set(bench.DIRECTIONS) for case in found)


EVERY_CASE = {
    f"{kind} {case.op} {case.name} {case.layout}": case
    for kind in ("cpu", "cuda")
    for case in bench.cases(torch.device(kind))
}


@pytest.mark.parametrize("name", EVERY_CASE)
def test_a_case_can_be_called_and_has_its_least_work(name):
    """Shapes alone: at least what is read of the input once, more with gradients."""
    case = EVERY_CASE[name]
    with FakeTensorMode():
        inputs = case.draw(CPU, torch.bfloat16)
        out = case.eager(**inputs, **case.options)
        of = {d: case.work(inputs, case.options, d) for d in bench.DIRECTIONS}
        assert out.requires_grad
        assert of["both"].bytes >= of["forward"].bytes >= inputs["input"].numel() * 2
        assert (of["forward"].flops > 0) == (case.op == "conv2d")


def test_figures_follow_from_the_times():
    found = rows("forward", "fastdl")
    ours, eager = found["fastdl"], found["eager"]
    assert ours.status == eager.status == "measured"
    assert 0 < ours.p20_ms <= ours.median_ms <= ours.p80_ms
    assert ours.speedup_vs_eager == eager.median_ms / ours.median_ms
    assert ours.gb_per_s == pytest.approx(1000 / ours.median_ms / 1e6)
    assert ours.tflop_per_s == pytest.approx(2000 / ours.median_ms / 1e9)
    assert ours.first_ms > 0 and eager.first_ms > 0
    assert ours.goal_vs_eager == 0.001 and eager.goal_vs_eager is None


def test_a_wrong_result_is_not_timed(monkeypatch):
    name = peer(monkeypatch, lambda input, kernel_size: T.max_pool2d(input, kernel_size) * 1.001)
    row = rows("both", name)[name]
    assert row.status == "wrong" and row.note.startswith("output:") and row.median_ms is None


def test_a_wrong_gradient_is_not_timed(monkeypatch):
    class Wrong(torch.autograd.Function):
        forward = staticmethod(lambda ctx, x: x.clone())
        backward = staticmethod(lambda ctx, grad: 2 * grad)

    name = peer(monkeypatch, lambda input, kernel_size: T.max_pool2d(Wrong.apply(input), kernel_size))
    assert rows("forward", name)[name].status == "measured"
    row = rows("both", name)[name]
    assert row.status == "wrong" and row.note.startswith("input:")


def test_a_peer_that_crashes_is_a_line(monkeypatch):
    def crash(**_):
        raise RuntimeError("no such kernel\nand a long trace")

    name = peer(monkeypatch, crash)
    found = rows("forward", name, "fastdl")
    assert found[name].status == "failed" and found[name].note == "RuntimeError: no such kernel"
    assert found["fastdl"].status == "measured"


def test_a_peer_that_crashes_the_second_time_is_a_line(monkeypatch):
    """The gradients alone are timed over one graph that is kept, which not everyone's is made for."""

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.served = False
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            if ctx.served:
                raise RuntimeError("its buffers are gone")
            ctx.served = True
            return grad.clone()

    name = peer(monkeypatch, lambda input, kernel_size: T.max_pool2d(Once.apply(input), kernel_size))
    found = rows("backward", name, "fastdl")
    assert found[name].status == "failed" and found[name].note == "RuntimeError: its buffers are gone"
    assert found["fastdl"].status == "measured"


def test_running_statistics_of_one_do_not_move_those_of_another():
    case = next(c for c in bench.cases(CPU, ["batch_norm"]) if c.name == "relu (32, 512)")
    found = rows("backward", "fastdl", case=case)
    assert {r.status for r in found.values()} == {"measured"}


def test_implementations_take_turns():
    seen = []
    calls = {name: lambda name=name: seen.append(name) for name in "ab"}
    times = timers.interleaved(calls, seconds=0.0, at_least=4)
    assert [len(t) for t in times.values()] == [4, 4]
    turns = re.sub(r"(a+|b+)", lambda m: m[0][0], "".join(seen))
    assert turns.endswith("abababab")


def test_command(small, tmp_path):
    file = tmp_path / "new" / "bench.json"
    result = CliRunner().invoke(
        cli.app,
        ["bench", "--device", "cpu", "--seconds", "0", "--json", str(file), "--peers", "eager,fastdl,cuda"],
    )
    assert result.exit_code == 0, result.output
    assert "2 rows of ours" in result.output and "cuda was skipped: for GPUs" in result.output
    written = json.loads(file.read_text())
    assert set(written) == {"schema", "environment", "results"}
    assert {r["implementation"] for r in written["results"]} == {"eager", "fastdl", "cuda"}
    assert bench.read(file) == written


@pytest.mark.parametrize("name, status", [("fastdl", 1), ("cpu", 1), ("triton", 1), ("liger", 0)])
def test_a_wrong_result_of_ours_fails_the_command(small, monkeypatch, name, status):
    """By our own choice of backend or by its name; what others compute is theirs."""
    wrong = lambda case: lambda input, kernel_size: T.max_pool2d(input, kernel_size) + 1  # noqa: E731
    monkeypatch.setitem(peers.PEERS, name, peers.Peer(name, "", lambda *_: None, wrong))
    command = ["bench", "--device", "cpu", "--seconds", "0", "--peers", name]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == status and "2 wrong or failed" in result.output


def test_what_is_ours_can_be_asked_for():
    assert set(bench.OWN) <= {*bench.PEERS, *command.IMPLEMENTATIONS}


def test_the_matrix_product_of_cublaslt_is_the_convolution():
    case = conv2d.layer("1x1", (2, 8, 5, 5), 12, 1, {}, layout="channels_last")
    tensors = case.draw(CPU, torch.float32)
    peer = peers.PEERS["cublaslt_relu"]
    out, expected = peer.make(case)(**tensors, **case.options), case.eager(**tensors, **case.options)
    torch.testing.assert_close(out, expected)
    assert out.stride() == expected.stride()
    assert peer.why_not(case, "forward", CPU) == "for GPUs"


def test_an_interrupted_run_keeps_what_it_measured(small, monkeypatch, tmp_path):
    twice = [CASE, CASE]
    monkeypatch.setattr(command, "cases", lambda *_: iter(twice))
    measure, calls = runner.measure, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(command, "measure", interrupted)
    file = tmp_path / "bench.json"
    CliRunner().invoke(cli.app, ["bench", "--device", "cpu", "--seconds", "0", "--json", str(file)])
    assert len(bench.read(file)["results"]) == 4  # two directions, eager and ours
    assert [p.name for p in tmp_path.iterdir()] == ["bench.json"]


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["conv3d"], "conv3d"),
        (["--peers", "apex"], "apex"),
        (["--direction", "sideways"], "sideways"),
        (["--layout", "nhwc"], "nhwc"),
        (["--dtype", "float64"], "float64"),
        (["--case", "no such shape"], "no such shape"),
        (["conv2d", "--direction", "backward", "--goals"], "--goals"),
        (["--device", "tpu"], "tpu"),
        (["--compare", "no.json", "no.json"], "no.json"),
    ],
)
def test_bad_input_is_named(arguments, named):
    result = CliRunner().invoke(cli.app, ["bench", "--device", "cpu", *arguments])
    assert result.exit_code == 2 and named in result.output


def test_listing():
    result = CliRunner().invoke(cli.app, ["bench", "--list", "--device", "cpu"])
    assert result.exit_code == 0
    for name in (*bench.OPS, "compile", "liger"):
        assert name in result.output


def result(implementation, median, spread=0.0, **more):
    key = dict.fromkeys(report.KEY, "x") | {"implementation": implementation, "status": "measured"}
    return (
        key | {"median_ms": median, "p20_ms": median * (1 - spread), "p80_ms": median * (1 + spread)} | more
    )


@pytest.mark.parametrize(
    "before, after, slower",
    [
        ([result("fastdl", 1.0)], [result("fastdl", 1.02)], False),
        ([result("fastdl", 1.0)], [result("fastdl", 1.1)], True),
        ([result("fastdl", 1.0, 0.1)], [result("fastdl", 1.1)], False),  # within its spread
        ([result("fastdl", 1.0), result("eager", 2.0)], [result("fastdl", 1.5), result("eager", 3.0)], False),
        ([result("fastdl", 1.0), result("eager", 2.0)], [result("fastdl", 1.0), result("eager", 1.0)], True),
        ([result("triton", 1.0)], [result("triton", 1.1)], True),
        ([result("fastdl_graph", 1.0)], [result("fastdl_graph", 1.1)], True),
        ([result("eager", 1.0)], [result("eager", 9.0)], False),  # not ours, nor are these
        ([result("compile", 1.0)], [result("compile", 9.0)], False),
        ([result("liger", 1.0)], [result("liger", 9.0)], False),
        ([result("cudnn_relu", 1.0)], [result("cudnn_relu", 9.0)], False),
        ([result("fastdl", 1.0)], [result("fastdl", 9.0, case="another")], False),
    ],
)
def test_slower_beyond_noise(before, after, slower):
    assert bool(report.slower(before, after)) is slower


def test_compare_by_command(tmp_path):
    for name, time in (("a", 1.0), ("b", 2.0)):
        report.write(tmp_path / name, {}, [result("fastdl", time)])
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert CliRunner().invoke(cli.app, ["bench", "--compare", a, b]).exit_code == 1
    assert CliRunner().invoke(cli.app, ["bench", "--compare", b, a]).exit_code == 0


@pytest.mark.parametrize(
    "text", ["not json", "[]", '{"schema": "other"}', '{"schema": "fastdl.bench/1", "results": [{}]}']
)
def test_a_file_of_another_schema_is_named(tmp_path, text):
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(bench.SchemaError, match=re.escape(str(file))):
        bench.read(file)


@pytest.fixture
def two_reports(tmp_path):
    """A plain file and a sweep's, as the command leaves them."""
    found = []
    for grows in ("", "batch <of> images"):
        rows = [
            result(name, ms * n, op="max_pool2d", case=f"{n}", sweep=grows, gb_per_s=1.0, timer="wall",
                   percent_of_copy=50.0, speedup_vs_eager=2.0 / ms, goal_vs_eager=3.0)
            for n in (1, 2, 3)
            for name, ms in (("eager", 2.0), ("fastdl", 1.0))
        ]  # fmt: skip
        report.write(tmp_path / f"{len(found)}.json", {"gpu": "none", "cpu": "A & B"}, rows)
        found.append(str(tmp_path / f"{len(found)}.json"))
    return found


def test_page(two_reports, tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "page.html"
    shown = [word for path in two_reports for word in ("--show", path)]
    result = CliRunner().invoke(cli.app, ["bench", *shown, "--html", str(file)])
    assert result.exit_code == 0, result.output
    text = file.read_text()
    parser = Balanced()
    parser.feed(text)
    assert not parser.open and parser.images == 3
    assert "A &amp; B" in text and "batch &lt;of&gt; images" in text and "<of>" not in text
    assert 'class="bad"' in text  # a goal of 3, 2 reached
    assert not re.search(r'(src|href)="(?!data:)', text)  # nothing from elsewhere


def test_a_note_on_the_page_spans_the_numbers():
    """In the first column of numbers it had been as wide as a line of text, and all numbers out of sight."""
    table = page._table(["op", "ms", "p20", "p80"], [["a", "1", "2", "3"], ["b", "wrong: ..."]], 1)
    assert "<td>b</td><td colspan=3>wrong: ...</td>" in table


class Balanced(HTMLParser):
    """What is open at the end of a page, and how many images it has."""

    def __init__(self):
        super().__init__()
        self.open, self.images = [], 0

    def handle_starttag(self, tag, attrs):
        self.images += tag == "img"
        if tag not in ("img", "meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_sweep_fits_a_line():
    """Overhead of 10 us and 20 GB/s, exactly."""
    bytes = [1e3, 1e6, 1e8, 1e9]
    line = sweep.fit(bytes, [0.01 + b / 20e6 for b in bytes])
    assert line == pytest.approx((10.0, 20.0))
    assert sweep.fit(bytes[:2], [1.0, 2.0]) is None


@pytest.mark.parametrize("op", bench.OPS)
def test_sweeps_grow(op):
    for name in sweep.SWEEPS[op]:
        with FakeTensorMode():
            inputs = [case.draw(CPU, torch.float32) for grows, case in sweep.cases(op) if grows == name]
        sizes = [x["input"].numel() for x in inputs]
        assert len(sizes) >= 3 and sizes == sorted(set(sizes))


def test_tables_of_the_pages(monkeypatch, tmp_path):
    """Made from the file, the same the second time, and stale as soon as the file says otherwise."""
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    facts = {"gpu": "none", "cpu": "some CPU", "threads": 2, "torch": "2.13.0"}
    page = tmp_path / "README.md"
    page.write_text("before <!-- results: ranges r.json -->\nold\n<!-- end of results --> after")
    monkeypatch.setattr(tables, "PAGES", ("README.md",))
    monkeypatch.setattr(tables, "PICTURES", {"picture.svg": ("r.json", picture.speedups)})
    named = {"op": "max_pool2d", "direction": "forward", "timer": "wall", "dtype": "float32"}
    for ratio in (2.0, 3.0):
        rows = [
            result("fastdl", ratio, case=str(i), speedup_vs_eager=ratio + i, speedup_vs_compile=1.5) | named
            for i in (0, 1)
        ]
        report.write(tmp_path / "r.json", facts, rows)
        monkeypatch.setattr("sys.argv", ["tables", "--check"])
        assert tables.main() == 1
        monkeypatch.setattr("sys.argv", ["tables"])
        assert tables.main() == 0
        text = page.read_text()
        assert f"| max_pool2d | forward | 2 | {ratio:.2f} to {ratio + 1:.2f} | 1.50 to 1.50 |" in text
        assert text.startswith("before") and text.endswith("after") and "old" not in text
        assert f">{ratio:g} {ratio:g}<" in (tmp_path / "picture.svg").read_text()
        monkeypatch.setattr("sys.argv", ["tables", "--check"])
        assert tables.main() == 0


def test_the_pages_say_what_the_results_say():
    for name in tables.PAGES:
        text = (tables.ROOT / name).read_text()
        assert tables.renewed(text) == text, f"python -m fastdl.bench.tables renews {name}"
    for name in tables.PICTURES:
        assert tables.up_to_date(name), f"python -m fastdl.bench.tables renews {name}"
