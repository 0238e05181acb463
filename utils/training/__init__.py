"""The loop, the loss, the optimizer, the checkpoints."""
