"""Documents out of every source."""
