"""Documents to start from: the text files in this folder, filled in, with folders to learn from."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
