"""Everything between robots, datasets and the model's arrays."""
