"""The floor: the least code that does a model server's work, to know how far ours is from it."""
