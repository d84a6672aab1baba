"""pizero's own checkpoints, their stored example, and LoRA adapters alone."""
