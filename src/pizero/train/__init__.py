"""Training: configuration, optimizer, loop, checkpoints."""
