"""The run folder's format: what a run leaves on disk. No torch here."""
