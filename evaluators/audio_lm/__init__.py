"""Audio language models, scored exactly."""
