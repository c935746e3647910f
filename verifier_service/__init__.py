"""The verifier service: the full model, the step loop, the decision on every token."""

# Before any module of this package loads torch: it decides how long OpenMP's threads spin.
import slipstream.engine  # noqa: F401
