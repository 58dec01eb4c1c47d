"""Seeds as pure functions of what they belong to."""

import hashlib


def derive_seed(*parts: object) -> int:
    """A seed below 2^63 that depends on all parts and on nothing else."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
