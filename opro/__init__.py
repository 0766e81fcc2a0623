"""The search: proposes prompts from a scored history, races them on dev clips, chooses honestly. Imports no torch."""
