"""Which keys and values are the same: more decides it than which model it is."""

from __future__ import annotations

from slipstream.engine.kv_rows import dtype_name
from slipstream.engine.runner import ModelRunner
from verifier_service.plan import Limits


def kv_identity(runner: ModelRunner, limits: Limits) -> str:
    """Names what computes keys and values here: model, type, precision, device, exactness.

    Two verifiers with the same name compute the same bits for a prefix, as far as their exactness
    promises any. Drafters do not ask: theirs are a context, and no answer depends on it.
    """
    loaded = runner.loaded
    plan, exactness = loaded.plan, "fast"
    if limits.strict:
        exactness = f"strict {runner.min_rows} {runner.query_multiple}"
    if limits.canonical:
        exactness += f" chunks {limits.prefill_chunk}"
    return (
        f"{loaded.fingerprint} {dtype_name(runner.pool.dtype)}"
        f" {plan.precision} {plan.head_precision} {loaded.device.type} {exactness}"
    )
