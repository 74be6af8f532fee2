"""What became of the inputs that were tried."""

from collections import Counter

TRIED: Counter[tuple[str, str]] = Counter()
"""(target, "taken" or "refused") -> how many."""
