"""Envelopes: they unwrap requests for the handler and wrap its answers."""
