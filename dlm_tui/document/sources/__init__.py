"""Taking in folders: `training.sources` of a document, from files to sections.

`globs` matches paths, `folder_config` reads `.dlm/training.yaml` and `.dlm/ignore`, `verdict` judges a file by both,
`roots` finds a source on disk, `walk` its files, `scan` makes sections of them, `describe` tells what was found.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
