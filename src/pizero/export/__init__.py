"""From a checkpoint to a folder that runs without PyTorch: graphs, a manifest, and the proof that they agree."""
