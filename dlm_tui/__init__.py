"""dlm-tui: an interactive workbench for `.dlm` documents, their adapters and their gate."""

__version__ = "0.1.0"
