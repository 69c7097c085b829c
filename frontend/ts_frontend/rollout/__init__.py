"""Rollouts: a new version takes over from the current one step by step, or is taken back."""
