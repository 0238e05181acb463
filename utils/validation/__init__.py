"""Is this model sound? Checks that say what they measured."""
