"""The clients. Each is a process of its own that asks for a fixed time and prints what it saw."""
