"""The base, its adapters, and the mixer. Names are loaded on first use, so that plain-data parts never import torch."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
