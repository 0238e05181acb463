"""Where are we? Device, files, environment, errors."""
