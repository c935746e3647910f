"""Model folders with random weights, for measurements in which only the size of a model counts."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from slipstream.core.errors import ConfigurationError

_VOCAB = 49_152
_WIDTH_STEP = 256
_WIDEST = 16_384
_DEEPEST = 256
_HEAD_DIM = 64
_QUERIES_PER_KV_HEAD = 4
_MLP_FACTOR = 4
# Layers for each unit of width: 24 for 2048, as in SmolLM2-1.7B.
_DEPTH = 24 / 2048
_UNITS = {"": 1, "m": 10**6, "b": 10**9}


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama with the proportions of small current models: MLPs four times as wide as the hidden
    size, a key for four queries, heads of 64, the output tied to the embedding.

    Attributes:
        hidden: a multiple of 256.
    """

    hidden: int
    layers: int
    vocab: int = _VOCAB

    @property
    def parameters(self) -> int:
        return self.vocab * self.hidden + self.hidden + self.layers * self.of_a_layer

    @property
    def of_a_layer(self) -> int:
        attention = 2 + 2 / _QUERIES_PER_KV_HEAD
        return int((attention + 3 * _MLP_FACTOR) * self.hidden**2) + 2 * self.hidden

    @property
    def config(self) -> dict[str, object]:
        heads = self.hidden // _HEAD_DIM
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": _MLP_FACTOR * self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // _QUERIES_PER_KV_HEAD,
            "head_dim": _HEAD_DIM,
            "vocab_size": self.vocab,
            "max_position_embeddings": 2048,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10_000.0,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "bfloat16",
        }


# Next to nothing: what a process holds with it, it holds with any model.
SMALLEST = Shape(_WIDTH_STEP, layers=1, vocab=256)


def shape_of(size: str) -> Shape:
    """The shape of a model of about so many parameters, such as 350m or 1.5b.

    Raises:
        ConfigurationError: it is no such number, or there are too few or too many for a shape.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mb]?)", size.strip().lower())
    if found is None:
        raise ConfigurationError(f"a number of parameters is written as 350m or 1.5b, not {size!r}")
    wanted = float(found[1]) * _UNITS[found[2]]
    shapes = []
    for hidden in range(_WIDTH_STEP, _WIDEST + 1, _WIDTH_STEP):
        rest = wanted - _VOCAB * hidden
        layers = round(rest / Shape(hidden, 1).of_a_layer)
        if 1 <= layers <= _DEEPEST:
            shapes.append(Shape(hidden, layers))
    best = min(shapes, key=lambda shape: abs(shape.layers - _DEPTH * shape.hidden), default=None)
    if best is None or not 0.9 < best.parameters / wanted < 1.1:
        raise ConfigurationError(f"no model can be made of {size} parameters; 20m to 900b can")
    return best


def write_model(folder: Path, shape: Shape) -> None:
    """Writes a model folder in bfloat16 with one file for each layer, and no tokenizer.

    Never more than a layer, or the embedding, is in memory.

    Raises:
        ConfigurationError: it cannot be written, for want of room for instance.
    """
    # Takes seconds, and nothing else of the benchmark needs it.
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        empty = torch.empty(rows, columns, dtype=torch.bfloat16)
        return empty.normal_(0.0, 0.02, generator=generator)

    def norm() -> torch.Tensor:
        return torch.ones(hidden, dtype=torch.bfloat16)

    hidden, wide = shape.hidden, _MLP_FACTOR * shape.hidden
    narrow = hidden // _QUERIES_PER_KV_HEAD
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(shape.config, indent=2))
        ends = {"model.embed_tokens.weight": matrix(shape.vocab, hidden)}
        save_file({**ends, "model.norm.weight": norm()}, folder / "model-ends.safetensors")
        for index in range(shape.layers):
            layer = {
                "input_layernorm": norm(),
                "post_attention_layernorm": norm(),
                "self_attn.q_proj": matrix(hidden, hidden),
                "self_attn.k_proj": matrix(narrow, hidden),
                "self_attn.v_proj": matrix(narrow, hidden),
                "self_attn.o_proj": matrix(hidden, hidden),
                "mlp.gate_proj": matrix(wide, hidden),
                "mlp.up_proj": matrix(wide, hidden),
                "mlp.down_proj": matrix(hidden, wide),
            }
            named = {f"model.layers.{index}.{name}.weight": one for name, one in layer.items()}
            save_file(named, folder / f"model-layer-{index:03d}.safetensors")
    except OSError as failure:
        raise ConfigurationError(f"cannot write a model into {folder}: {failure}") from failure
