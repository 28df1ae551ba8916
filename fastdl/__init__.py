"""Fused kernels for the layers that image networks are made of, as drop-in functions and modules.

fastdl.convert(model)       the layers of an existing model on fused kernels, in place
fastdl.revert(model)        the model as it was
fastdl.explain(model)       which calls are served by what, and why the others are not
fastdl.warm_up(model, x)    compile beforehand what calls of a model need
fastdl.functional           torch.nn.functional's names
fastdl.nn                   torch.nn's names
fastdl.use_backend(name)    serve the calls inside by one backend
"""

from importlib.util import find_spec as _find_spec
from pathlib import Path as _Path

__version__ = "0.1.0"

if _find_spec("fastdl.kernels") is None and (_Path(__file__).parent.parent / "kernels").is_dir():
    raise ImportError(
        "fastdl is imported from its source tree without being installed; run "
        "`pip install --no-build-isolation -e .` in it (or `make test`, which does)"
    )

from . import backends, functional, nn
from .backends import use_backend
from .convert import convert, explain, revert
from .warm_up import warm_up

__all__ = ["backends", "convert", "explain", "functional", "nn", "revert", "use_backend", "warm_up"]
