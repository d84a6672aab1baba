"""What is wrong with a dataset, before a training run is spent on it."""
