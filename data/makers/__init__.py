"""Tools that made the shipped clips and checkpoints; not installed."""
