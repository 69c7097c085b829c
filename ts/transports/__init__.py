"""The worker's end of each kind of connection."""
