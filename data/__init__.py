"""Recipes and builders for clip sets, and the shipped clips and checkpoints."""
