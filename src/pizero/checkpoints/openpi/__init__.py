"""Checkpoints of openpi: JAX (Orbax) and its PyTorch port."""
