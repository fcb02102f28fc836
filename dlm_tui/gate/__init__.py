"""The gate: network, prompt embedding with prefix reuse, training, judgement, static mean, drift.

Names load on first use: importing the package loads neither torch nor numpy.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
