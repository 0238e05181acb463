"""One file per trainer that `benchmarks/train.py` measures; each runs in a process of its own."""
