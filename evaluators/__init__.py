"""Measuring: clips, prompts, checkpoints and exact scores. Knows nothing of the search."""
