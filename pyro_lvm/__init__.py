"""Latent variable models on Pyro and PyTorch."""

__version__ = "0.1.0"
