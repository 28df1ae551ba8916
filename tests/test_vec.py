"""csrc/cpu/vec.h in each capability that this CPU has, by a program of its own."""

import importlib.util
import subprocess
from pathlib import Path

import pytest
import torch

from fastdl import native

CSRC = Path(__file__).parent.parent / "csrc"
SPEC = importlib.util.spec_from_file_location("csrc_build", CSRC / "build.py")
build = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build)

PROGRAM = r"""
#include "cpu/vec.h"
#include <cstdio>
using namespace fastdl::cpu;

int failures = 0;
void expect(bool right, const char* what, int64_t at) {
  if (!right) ++failures, std::printf("%s at %d\n", what, static_cast<int>(at));
}

template <class T>
void partial(const char* name) {
  for (int64_t n = 0; n <= kWidth; ++n) {
    T memory[3 * kWidth];
    for (int i = 0; i < 3 * kWidth; ++i) memory[i] = from_float<T>(static_cast<float>(i + 1));
    Vec v = load(memory + 3, n, -7.0f);
    for (int i = 0; i < kWidth; ++i) expect(v[i] == (i < n ? i + 4 : -7), name, n);
    store(memory + 5, splat(99.0f), n);
    for (int i = 0; i < 3 * kWidth; ++i)
      expect(to_float(memory[i]) == (i >= 5 && i < 5 + n ? 99 : i + 1), name, n);
  }
}

int main() {
  volatile float zero = -0.0f, nan = __builtin_nanf("");
  for (int i = 0; i < kWidth; ++i) {
    expect(std::signbit(splat(zero)[i]), "splat keeps the sign of zero", i);
    expect(splat(nan)[i] != splat(nan)[i], "splat keeps NaN", i);
    Vec v{};
    for (int j = 0; j < kWidth; ++j) v[j] = static_cast<float>(-j - 1);
    v[i] = nan;
    expect(max(v) == (i == 0 ? -2.0f : -1.0f), "max passes over NaN", i);
    v = splat(nan);
    v[i] = -3.0f;
    expect(max(v) == -3.0f, "max finds the one number", i);
    v = splat(1.0f);
    v[i] = 2.0f;
    expect(max(v) == 2.0f, "max", i);
  }
  Vec none = splat(nan);
  expect(max(none) != max(none), "max of NaN alone", 0);
  partial<float>("float32"), partial<f16>("float16"), partial<bf16>("bfloat16");
  return failures != 0;
}
"""


@pytest.mark.skipif(build.compiler() is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("capability", build.CAPABILITIES)
def test_vectors(capability, tmp_path):
    best = torch.backends.cpu.get_cpu_capability().lower()
    order = native.CAPABILITIES
    if order.index(capability) > (order.index(best) if best in order else 0):
        pytest.skip(f"this CPU has no {capability}")
    source, program = tmp_path / "vec.cpp", tmp_path / "vec"
    source.write_text(PROGRAM)
    flags = [*build.CXX_FLAGS, *build.CAPABILITIES[capability], f"-I{CSRC}"]
    subprocess.run([build.compiler(), *flags, str(source), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
