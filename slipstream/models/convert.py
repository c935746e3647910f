"""GGUF file -> folder with dense bfloat16 safetensors, config and tokenizer.

Runs as `python -m slipstream.models.convert SOURCE FOLDER`, a process of its own: this is the
only module here that needs torch. Exit code 0, or 2 with the reason in the last line of stderr.
"""

from __future__ import annotations

import argparse
import errno
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from slipstream.core.errors import CheckpointError, ConfigurationError, SlipstreamError


def convert(source: Path, folder: Path) -> None:
    """Writes the model of the GGUF file `source` into the empty `folder`.

    Raises:
        CheckpointError: the file cannot be read, or its kind of model is not supported.
        ConfigurationError: the disk is full.
    """
    # A parser of foreign files may raise anything.
    try:
        model, tokenizer = _load(source)
    except Exception as failure:
        reason = " ".join(str(failure).split()) or type(failure).__name__
        raise CheckpointError(f"cannot read {source.name} as a GGUF model: {reason}") from failure
    dense = _dense(model)
    try:
        dense.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    # safetensors and tokenizers wrap the system's error in types and words of their own.
    except Exception as failure:
        text = str(failure)
        full = getattr(failure, "errno", None) == errno.ENOSPC or "os error 28" in text
        if full or "No space left" in text:
            raise ConfigurationError(f"the disk is full: cannot write {folder}") from failure
        raise


def _load(source: Path) -> tuple[Any, Any]:
    options: dict[str, Any] = {"gguf_file": source.name, "dtype": torch.bfloat16}
    # Releases that can keep the weights packed must be told not to; older ones always unpack.
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    folder = str(source.parent)
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=source.name)


def _dense(model: Any) -> Any:
    """The same model built anew without the quantization that makes it refuse to be saved.

    Raises:
        CheckpointError: a weight is still packed, or the weights do not fit the plain model.
    """
    state = model.state_dict()
    packed = [name for name, tensor in state.items() if not tensor.is_floating_point()]
    if packed:
        raise CheckpointError(f"{len(packed)} weights are still quantized, first {packed[0]}")
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    settings["dtype"] = "bfloat16"
    with torch.device("meta"):
        plain = type(model)(type(model.config).from_dict(settings))
    try:
        plain.load_state_dict(
            {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}, assign=True
        )
    except RuntimeError as failure:
        raise CheckpointError(f"the file's weights do not fit its config: {failure}") from failure
    plain.tie_weights()
    plain.config.dtype = torch.bfloat16
    plain.generation_config = model.generation_config
    return plain


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m slipstream.models.convert")
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parsed = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        convert(parsed.source.absolute(), parsed.folder)
    except SlipstreamError as failure:
        # A progress bar of a library may have left its line open.
        sys.stderr.write(f"\n{failure.message}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
