"""Max-min fair sharing, and Jain's fairness index."""

from collections.abc import Sequence


def max_min_shares(total: float, caps: Sequence[float]) -> list[float]:
    """Max-min fair shares of `total` under `caps`, by water-filling.

    Each share is the smaller of its cap and one common level; the shares add up to `total` or to the sum of the caps,
    whichever is smaller. They are in the order of `caps`. Raises ValueError for a negative total or cap.
    """
    if total < 0 or any(cap < 0 for cap in caps):
        raise ValueError("neither the total nor a cap may be negative")
    shares = [0.0] * len(caps)
    left = total
    ascending = sorted(range(len(caps)), key=caps.__getitem__)
    for done, index in enumerate(ascending):
        level = left / (len(caps) - done)
        shares[index] = min(caps[index], level)
        left -= shares[index]
    return shares


def jain_index(values: Sequence[float]) -> float:
    """Jain's fairness index, (sum x)^2 / (n * sum x^2): 1 if all values are equal, 1/n if only one is not zero.

    1 if there are no values or only zeros.
    """
    squares = sum(value * value for value in values)
    if squares == 0:
        return 1.0
    return sum(values) ** 2 / (len(values) * squares)
