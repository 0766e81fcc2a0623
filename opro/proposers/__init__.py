"""Where candidate prompts come from."""
