"""Service classes from before handlers became plain classes, for archives that derive from them."""
