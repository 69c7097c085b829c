"""Models spread over several processes."""
