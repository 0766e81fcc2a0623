"""Prompt files: seeds, meta-prompts, the rewriter's fragments, held-out phrasings."""
