"""The text of a scrape as numbers."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

# Which every series of a service has.
COMMON = frozenset({"component", "model_name"})


def values_of(text: str) -> dict[str, float]:
    """Each sample by its name and its own labels, as Prometheus writes them."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            own = [f'{k}="{v}"' for k, v in sorted(sample.labels.items()) if k not in COMMON]
            found[sample.name + (f"{{{','.join(own)}}}" if own else "")] = sample.value
    return found
