"""Checkpoints of Hugging Face Transformers: PI0ForConditionalGeneration, and PaliGemma for the prefix."""
