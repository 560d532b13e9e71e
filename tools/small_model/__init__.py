"""Data, training, evaluation and export of the built-in texture model (see docs/model-training.md)."""
