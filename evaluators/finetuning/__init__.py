"""LoRA fine-tuning with the scorer's own template."""
