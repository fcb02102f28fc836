"""Sections become rows, rows become adapters, adapters and gate become a committed state of the store."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
