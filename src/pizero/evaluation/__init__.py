"""Policies in simulators: rollouts, success rates, videos."""
