"""Slipstream: lossless speculative decoding, split over a drafter and a verifier service."""

__version__ = "0.1.0"
