"""The gate: network, prompt embedding with prefix reuse, training, judgement, static mean, drift.

Names load on first use: importing the room costs nothing, and what needs no torch (status, texts) loads none.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
