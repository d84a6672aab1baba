"""Which robot recorded a dataset, by the dataset's own description and numbers."""
