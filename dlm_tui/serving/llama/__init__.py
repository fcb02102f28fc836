"""Answers from llama.cpp, the gate in numpy. No torch in the process."""
