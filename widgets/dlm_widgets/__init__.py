"""Textual widgets that know only plain data: numbers and strings in, messages out.

Nothing here imports the application, so every widget can be used in another Textual program.
"""
