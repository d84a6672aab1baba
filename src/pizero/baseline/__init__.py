"""The diffusion policy (arXiv 2303.04137), and each step from it towards π0 as a switch of its config."""
