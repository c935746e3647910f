"""The drafter service: a cheaper copy of the model that runs ahead of its verifiers."""

# Before any module of this package loads torch: it decides how long OpenMP's threads spin.
import slipstream.engine  # noqa: F401
