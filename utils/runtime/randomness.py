"""Seeds derived by hashing what they are for, so that no random state has to be saved; no torch."""

import hashlib


def derive_seed(seed: int, *what: str | int) -> int:
    """A 63-bit seed for one purpose, such as derive_seed(1337, "dropout", step, micro_batch).

    The same words give the same seed on every machine; different words give unrelated ones.
    """
    words = "/".join(map(str, (seed, *what)))
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest()) >> 1
