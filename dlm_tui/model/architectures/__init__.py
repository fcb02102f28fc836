"""What the fused tier knows of each family of decoders, as data.

A family is one entry in `families.py`; adding one is a recipe in docs/recipes/base-architecture.md. Nothing here is
trusted: a base is only run this way after its numbers agreed with the transformers forward (`backend_selection`).
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
