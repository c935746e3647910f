"""From the name of a model to a local folder that can be loaded. Imports no torch."""

from slipstream.models.resolve import resolve, served_name

__all__ = ["resolve", "served_name"]
