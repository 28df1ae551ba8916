"""A step's forward and backward as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Tensors = tuple[Tensor, ...]


class GraphedStep:
    """``compute`` (a loss and its gradients) captured at the first batch and replayed for those like it.

    The optimiser stays outside, so that its rate may change.
    """

    def __init__(self, compute: Callable[[Tensors, Tensors], Tensor], model: nn.Module) -> None:
        self.compute = compute
        self.model = model
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, inputs: Tensors, targets: Tensors) -> Tensor:
        if self.graph is None:
            self._capture(inputs, targets)
        for kept, new in zip(self.kept, (*inputs, *targets), strict=True):
            kept.copy_(new)
        self.graph.replay()
        return self.loss.clone()

    def _capture(self, inputs: Tensors, targets: Tensors) -> None:
        self.kept = tuple(x.clone() for x in (*inputs, *targets))
        inputs, targets = self.kept[: len(inputs)], self.kept[len(inputs) :]
        before = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries choose and allocate before they are recorded
            for _ in range(3):
                self.model.zero_grad()
                self.compute(inputs, targets)
        torch.cuda.current_stream().wait_stream(side)
        self.model.zero_grad()  # so that the graph writes gradients rather than adding to them
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = self.compute(inputs, targets)
        for name, buffer in self.model.named_buffers():  # running statistics: the warm-up was no training
            buffer.copy_(before[name])
