"""What answers the scoring protocols: a mixed model, and a dummy without a model. `examples/scoring.py` uses both."""
