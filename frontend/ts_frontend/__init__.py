"""The frontend of the model server: one process, one event loop, no torch."""
