"""HTTP/1.1: bytes in, bytes out. Knows connections and requests, not models."""
