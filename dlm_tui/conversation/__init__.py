"""Conversations: a tree of kept answers, and what it becomes outside. Names are loaded on first use."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
