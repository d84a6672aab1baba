"""ALOHA in simulation: the scenes of gym-aloha."""
