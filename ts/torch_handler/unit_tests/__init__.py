"""Test helpers that handler authors import from here."""
