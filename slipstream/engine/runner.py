"""One forward pass: segments in, logits out."""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq

import torch

from slipstream.core.errors import ConfigurationError
from slipstream.engine.attention import CONTEXT, ForwardContext
from slipstream.engine.batch import Segment, pack
from slipstream.engine.checkpoint import LoadedModel
from slipstream.engine.kv_pool import BLOCK_TOKENS, KvPool


class ModelRunner:
    """A loaded model and its KV pool. One thread at a time.

    Args:
        kv_bytes: size of the pool.

    Attributes:
        min_rows, query_multiple: shapes that batches are padded to; see `exactness`.
        model_seconds: total time spent in forward passes.
    """

    def __init__(self, loaded: LoadedModel, kv_bytes: int) -> None:
        config = loaded.config
        self.loaded = loaded
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        layers = max(1, len(loaded.kv_layers))
        per_block = KvPool.bytes_per_block(layers, kv_heads, head_dim, loaded.dtype)
        blocks = kv_bytes // per_block
        if blocks < 2:
            raise ConfigurationError(
                f"the KV pool is too small: {kv_bytes} bytes, one block of {BLOCK_TOKENS} tokens "
                f"takes {per_block}"
            )
        try:
            self.pool = KvPool(
                num_layers=layers,
                num_blocks=blocks,
                num_kv_heads=kv_heads,
                head_dim=head_dim,
                dtype=loaded.dtype,
                device=loaded.device,
            )
        except (RuntimeError, MemoryError) as failure:
            raise ConfigurationError(
                f"there is no memory for a KV pool of {kv_bytes / 2**30:.1f} GiB on "
                f"{loaded.device}; ask for a smaller one with --kv-cache-gib"
            ) from failure
        self.min_rows = 1
        self.query_multiple = 1
        self.model_seconds = 0.0
        self._kv_index = {layer: i for i, layer in enumerate(loaded.kv_layers)}

    @torch.inference_mode()
    def forward(self, segments: Seq[Segment]) -> torch.Tensor:
        """Runs the rows of all segments at once.

        Keys and values of every row are in the pool afterwards, at the rows' positions.

        Returns:
            Logits, [wanted, vocab] in the model's dtype: the last `num_logits` rows of each
            segment, in the order of the segments.
        """
        for segment in segments:
            self.pool.enter(segment.table, segment.position, segment.kv_length)
        batch = pack(
            segments,
            min_rows=self.min_rows,
            query_multiple=self.query_multiple,
            device=self.loaded.device,
        )
        started = time.perf_counter()
        context = ForwardContext(batch, self.pool, self._kv_index)
        output = self.loaded.model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            logits_to_keep=batch.logit_rows,
            **{CONTEXT: context},
        )
        logits: torch.Tensor = output.logits[0, : batch.num_logits]
        if logits.is_cuda:
            torch.cuda.synchronize(logits.device)
        self.model_seconds += time.perf_counter() - started
        return logits
