"""Plans without a search, to start from and to be compared with."""

from __future__ import annotations

from itertools import product

from slipstream.core.layer_plan import HeadPrecision, LayerPlan, Precision, Skips

# What is searched for layers, and for the head; a head is screened only where that pays.
PRECISIONS: tuple[Precision, ...] = ("native", "int8", "int4")
SCREENED: tuple[HeadPrecision, ...] = (*PRECISIONS, "screened")
# The name of the plan without skipping that is taken where there is no other.
AUTOMATIC = "automatic"


def whole_plans(heads: tuple[HeadPrecision, ...] = PRECISIONS) -> list[LayerPlan]:
    """Nothing skipped, at every precision of layers and head; the cheapest first."""
    return [LayerPlan(layers, head) for layers, head in product(PRECISIONS[::-1], heads[::-1])]


def every_kth(layers: int, k: int) -> Skips:
    """Both sublayers of every k-th layer, the first and the last layer kept."""
    chosen = frozenset(range(k - 1, layers - 1, k)) - {0}
    return Skips(chosen, chosen)


def last_layers(layers: int, count: int) -> Skips:
    """Both sublayers of `count` layers before the last: early exit, but for the last layer."""
    chosen = frozenset(range(max(1, layers - 1 - count), layers - 1))
    return Skips(chosen, chosen)


def naive_plans(layers: int, automatic: LayerPlan) -> dict[str, LayerPlan]:
    """By what one would call them.

    Args:
        automatic: the plan without skipping that is taken where there is no other; the skipping
            ones have its precision.
    """
    return {
        "native, nothing skipped": LayerPlan(),
        "int8, nothing skipped": LayerPlan("int8", "int8"),
        "int4, nothing skipped": LayerPlan("int4", "int4"),
        AUTOMATIC: automatic,
        "every 8th layer": automatic.with_skips(every_kth(layers, 8)),
        "every 4th layer": automatic.with_skips(every_kth(layers, 4)),
        "every 2nd layer": automatic.with_skips(every_kth(layers, 2)),
        "every 4th attention": automatic.with_skips(
            Skips(attention=every_kth(layers, 4).attention)
        ),
        "every 4th MLP": automatic.with_skips(Skips(mlp=every_kth(layers, 4).mlp)),
        "last tenth of the layers": automatic.with_skips(last_layers(layers, max(1, layers // 10))),
        "last quarter of the layers": automatic.with_skips(
            last_layers(layers, max(1, layers // 4))
        ),
    }
