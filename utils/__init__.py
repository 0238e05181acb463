"""Transformer Builder Templates. Import the file you need: `from utils.training.run import run_training`."""
