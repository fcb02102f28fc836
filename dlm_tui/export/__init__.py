"""Exports: one frozen mix of the adapters in the form other programs load. Names load on first use (torch is heavy)."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
