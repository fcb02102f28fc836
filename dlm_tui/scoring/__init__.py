"""Does an adapter change anything? Protocols, backends, divergences and scores. Names load on first use, without
torch.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
