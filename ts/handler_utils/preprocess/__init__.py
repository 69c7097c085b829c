"""Preprocessing on the accelerator."""
