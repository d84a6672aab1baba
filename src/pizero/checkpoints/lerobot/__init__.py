"""Checkpoints of LeRobot: pi0, pi05 and diffusion policies, with their processors."""
