"""Fused kernels for the layers that image networks are made of."""

__version__ = "0.1.0"
