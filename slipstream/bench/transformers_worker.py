"""A process that runs transformers' own generate(): the peer that we measure against.

Run as `python -m slipstream.bench.transformers_worker --model DIR --threads N`. One JSON object
a line. It first writes {"ready": true, "eos_token_ids": [...]}; then for each request
{"token_ids": [...], "max_tokens": n, "prompt_lookup": n | null, "eos_token_ids": [...]} it
writes {"token_ids", "seconds", "ttft_seconds", "widths"}, where `widths` are the rows of each
forward pass. It ends when its stdin ends.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any, TextIO

import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer


class _FirstToken(BaseStreamer):
    """Takes the time of the first generated token; generate() hands it the prompt before."""

    def __init__(self) -> None:
        self.calls = 0
        self.time: float | None = None

    def put(self, value: torch.Tensor) -> None:  # noqa: ARG002
        self.calls += 1
        if self.calls == 2:
            self.time = time.perf_counter()

    def end(self) -> None:
        pass


class Peer:
    """The model in bfloat16 with SDPA attention, as a user of transformers would load it."""

    def __init__(self, model: str, threads: int) -> None:
        torch.set_num_threads(threads)
        # Any: the class that AutoModel returns has no generate() as far as its types go.
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.bfloat16, attn_implementation="sdpa", local_files_only=True
        )
        self._widths: list[int] = []
        self._model.register_forward_pre_hook(self._note_width, with_kwargs=True)

    def _note_width(self, _module: torch.nn.Module, _args: tuple[Any, ...], kwargs: Any) -> None:
        self._widths.append(int(kwargs["input_ids"].shape[1]))

    def eos_token_ids(self) -> list[int]:
        ids = self._model.generation_config.eos_token_id
        if ids is None:
            return []
        return [ids] if isinstance(ids, int) else list(ids)

    @torch.inference_mode()
    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Runs one greedy generation and says what it took."""
        prompt = torch.tensor([request["token_ids"]])
        eos = request["eos_token_ids"]
        options: dict[str, Any] = {"eos_token_id": eos, "pad_token_id": eos[0]} if eos else {}
        if request["prompt_lookup"]:
            options["prompt_lookup_num_tokens"] = request["prompt_lookup"]
        self._widths.clear()
        streamer = _FirstToken()
        start = time.perf_counter()
        output = self._model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=request["max_tokens"],
            streamer=streamer,
            **options,
        )
        end = time.perf_counter()
        return {
            "token_ids": output[0, prompt.shape[1] :].tolist(),
            "seconds": end - start,
            "ttft_seconds": (streamer.time or end) - start,
            "widths": list(self._widths),
        }


def _write(stream: TextIO, answer: dict[str, Any]) -> None:
    stream.write(json.dumps(answer) + "\n")
    stream.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    settings = parser.parse_args()
    answers = sys.stdout
    # What a library prints must not end up among the answers.
    sys.stdout = sys.stderr
    peer = Peer(settings.model, settings.threads)
    _write(answers, {"ready": True, "eos_token_ids": peer.eos_token_ids()})
    for line in sys.stdin:
        _write(answers, peer.answer(json.loads(line)))


if __name__ == "__main__":
    main()
