"""Triton kernels and their launchers: a leaf, one module per op, installed as ``fastdl.kernels``.

An op too long for one file keeps its parts beside it as ``<op>_<part>.py``. Each op's module offers
``forward(...)`` and ``backward(...)`` that fill the output tensors they are handed (the contract in
docs/design.md); nothing here allocates what a caller sees or imports fastdl.
"""

if __name__ != "fastdl.kernels":
    raise ImportError(
        f"this package is fastdl.kernels, imported as {__name__!r}: the repository root is on "
        "sys.path; write `from fastdl import kernels`"
    )
