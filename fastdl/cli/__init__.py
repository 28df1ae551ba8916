"""The ``fastdl`` command: a file per command or group of them, each importing what it runs when it runs."""

from __future__ import annotations

import typer

from . import bench, demo, experiments, info, networks, parity, train

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def _about() -> None:
    """Fused kernels for the layers that image networks are made of."""


for command in (
    info.info,
    parity.parity,
    bench.bench,
    demo.demo,
    train.train,
    networks.models,
    networks.warm_up,
    networks.suite,
    experiments.experiment,
    experiments.experiments,
):
    app.command()(command)


def main() -> None:
    """Entry point of the ``fastdl`` command."""
    app()
