"""One forward pass: segments in, logits out; or hidden states, where the model is a part."""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq

import torch
import torch.nn.functional as F

from slipstream.core.errors import ConfigurationError
from slipstream.engine.attention import CONTEXT, ForwardContext
from slipstream.engine.batch import Batch, Segment, pack
from slipstream.engine.checkpoint import LoadedModel
from slipstream.engine.decoder import Decoder
from slipstream.engine.kv_pool import BLOCK_TOKENS, KvPool


class ModelRunner:
    """A loaded model and its KV pool. One thread at a time.

    Args:
        kv_bytes: size of the pool of the whole model. A part of one has as many blocks, each with
            room for its own layers only.

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
        per_block = KvPool.bytes_per_block(
            max(1, loaded.num_kv_layers), kv_heads, head_dim, loaded.dtype
        )
        blocks = kv_bytes // per_block
        if blocks < 2:
            raise ConfigurationError(
                f"the KV pool is too small: {kv_bytes} bytes, one block of {BLOCK_TOKENS} tokens "
                f"takes {per_block}"
            )
        try:
            self.pool = KvPool(
                num_layers=max(1, len(loaded.kv_layers)),
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
        self._decoder: Decoder | None = None
        if Decoder.serves(loaded):
            self._decoder = Decoder(loaded, self.pool, self._kv_index)

    @torch.inference_mode()
    def forward(self, segments: Seq[Segment], hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Runs the rows of all segments at once.

        Keys and values of every row are in the pool afterwards, at the rows' positions.

        Args:
            hidden: [rows, size], the rows as the shard before this one returned them.

        Returns:
            Logits, [wanted, vocab] in the model's dtype: the last `num_logits` rows of each
            segment, in the order of the segments. From a shard that is not the last: the hidden
            states of all rows, [rows, size].
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
        result = self._run(batch, hidden)
        if result.is_cuda:
            torch.cuda.synchronize(result.device)
        self.model_seconds += time.perf_counter() - started
        return result

    def _run(self, batch: Batch, hidden: torch.Tensor | None) -> torch.Tensor:
        rows = batch.segments[-1].rows.stop
        if hidden is not None:
            padding = batch.input_ids.shape[1] - rows
            hidden = F.pad(hidden.to(self.loaded.device), (0, 0, 0, padding))[None]
        context = ForwardContext(batch, self.pool, self._kv_index, hidden)
        if self._decoder is None:
            return self._run_library(context, rows)
        states = self._decoder.forward(context)
        if not self.loaded.shard.last:
            return states[0, :rows]
        head = self.loaded.model.get_output_embeddings()  # type: ignore[operator]
        logits: torch.Tensor = head.forward(states[:, batch.logit_rows])
        return logits[0, : batch.num_logits]

    def _run_library(self, context: ForwardContext, rows: int) -> torch.Tensor:
        """A pass of a model that `Decoder` does not serve, as `transformers` would do it."""
        model, batch = self.loaded.model, context.batch
        inputs = {"input_ids": batch.input_ids}
        if context.hidden is not None:
            inputs = {"inputs_embeds": context.hidden}
        common = {"position_ids": batch.position_ids, "use_cache": False, CONTEXT: context}
        if not self.loaded.shard.last:
            decoder = model.get_decoder()  # type: ignore[operator]
            states: torch.Tensor = decoder(**inputs, **common).last_hidden_state
            return states[0, :rows]
        output = model(**inputs, **common, logits_to_keep=batch.logit_rows)
        logits: torch.Tensor = output.logits[0, : batch.num_logits]
        return logits
