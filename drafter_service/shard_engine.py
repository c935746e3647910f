"""The engine of a shard behind the first: computes passes as they come, in order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from drafter_service.draft import Draft, Key, Work
from drafter_service.room import Room
from drafter_service.shard_codec import from_bytes, result_to_proto, to_bytes
from drafter_service.shard_context import ShardContext
from drafter_service.shard_counters import ShardCounters
from drafter_service.stage import draw_all
from slipstream.core.draft import Open
from slipstream.core.errors import InternalError, InvalidRequest, SlipstreamError
from slipstream.core.runs import agreement
from slipstream.engine.batch import Segment
from slipstream.engine.loop import EngineLoop
from slipstream.engine.runner import ModelRunner
from slipstream.engine.sequence import Sequence as TokenSequence
from slipstream.wire.draft_codec import command_from_proto
from slipstream.wire.proto import drafter_pb2, shard_pb2

log = logging.getLogger(__name__)


class Stream:
    """Where a stream's requests lead: all are called on the engine's thread.

    Args:
        down: takes requests for the next shard; None on the last one.
        up: takes responses for the shard before.
        fail: takes what ends the stream.
    """

    def __init__(
        self,
        down: Callable[[shard_pb2.RunRequest], None] | None,
        up: Callable[[shard_pb2.RunResponse], None],
        fail: Callable[[SlipstreamError], None],
    ) -> None:
        self.down, self.up, self.fail = down, up, fail


class ShardEngine(EngineLoop):
    """Mirrors the sequences of shard 0: each as far as its rows have told.

    The last shard draws with the sampling rule from the same tokens, so it needs them all; the
    others keep them because it costs nothing.

    Args:
        context: fetches keys and values; where None, shard 0 must not ask for any.
    """

    def __init__(self, runner: ModelRunner, context: ShardContext | None = None) -> None:
        super().__init__()
        self.runner = runner
        self._context = context
        self.counters = ShardCounters()
        # Never more than shard 0 has: its pool is as large, and only it makes room.
        self._room = Room(runner.pool, ahead=0)
        self._stream: Stream | None = None
        self._drafts: dict[int, Draft] = {}

    # ---- from any thread -------------------------------------------------------------------

    @property
    def num_open(self) -> int:
        return len(self._drafts)

    def begin(self, stream: Stream) -> None:
        """Requests come from `stream` now; what was open for an earlier one is freed."""
        self.post(lambda: self._begin(stream))

    def end(self, stream: Stream) -> None:
        """No more will come from `stream`."""
        self.post(lambda: self._begin(None) if self._stream is stream else None)

    def obey(self, stream: Stream, request: shard_pb2.RunRequest) -> None:
        """Requests of one stream, in order."""
        self.post(lambda: self._obey(stream, request))

    # ---- the engine's thread ---------------------------------------------------------------

    def step(self) -> bool:
        self._read_inbox()
        return False

    def close(self) -> None:
        self._begin(None)

    def _begin(self, stream: Stream | None) -> None:
        self._stream = stream
        for number in list(self._drafts):
            self._close(number)
        if self._context is not None:
            self._context.end()

    def _close(self, number: int) -> None:
        draft = self._drafts.pop(number, None)
        if self._context is not None:
            self._context.stop(number)
        if draft is not None and draft.sequence.table is not None:
            self.runner.pool.release(draft.sequence.table)

    def _obey(self, stream: Stream, request: shard_pb2.RunRequest) -> None:
        if stream is not self._stream:
            return
        try:
            kind = request.WhichOneof("request")
            if kind == "forward":
                self._pass(stream, request.forward)
                return
            if kind == "open":
                self._open(request.open)
            elif kind == "close":
                self._close(request.close.sequence_id)
            else:
                self._follow(stream, request)
            if stream.down is not None:
                stream.down(request)
        except Exception as failure:
            if not isinstance(failure, SlipstreamError):
                log.exception("a request failed")
                failure = InternalError(f"shard failed: {failure}")
            stream.fail(failure)
            self._begin(None)

    def _open(self, message: drafter_pb2.OpenSequence) -> None:
        command = command_from_proto(drafter_pb2.DraftCommand(open=message))
        assert isinstance(command, Open)
        self._close(command.sequence_id)
        key = Key(0, command.sequence_id)
        self._drafts[command.sequence_id] = Draft(key, command, self.runner.loaded.fingerprint)

    def _follow(self, stream: Stream, request: shard_pb2.RunRequest) -> None:
        """Of a sequence's context."""
        kind, context = request.WhichOneof("request"), self._context
        if kind not in ("fetch", "take", "stop") or context is None:
            raise InvalidRequest(f"this shard takes no {kind}")
        if kind == "fetch":
            draft = self._draft(request.fetch.sequence_id)
            context.fetch(request.fetch, draft, self.post, stream.up)
        elif kind == "take":
            draft, take = self._draft(request.take.sequence_id), request.take
            if take.token_ids:
                follow(draft.sequence, take.computed, take.token_ids, final=False)
            context.take(take, draft)
        else:
            context.stop(request.stop.sequence_id)

    def _draft(self, number: int) -> Draft:
        draft = self._drafts.get(number)
        if draft is None:
            raise InvalidRequest(f"sequence {number} is not open on this shard")
        return draft

    def _pass(self, stream: Stream, message: shard_pb2.Pass) -> None:
        """Computes a pass and sends it on, or back with what was drawn or why nothing was."""
        work = [self._work(rows) for rows in message.rows]
        loaded = self.runner.loaded
        hidden = from_bytes(message.hidden, loaded.config.hidden_size, loaded.dtype)
        if len(hidden) != sum(len(item.segment.tokens) for item in work):
            raise InvalidRequest(f"a pass has {len(hidden)} hidden states and other rows")
        try:
            with self.counters.computing():
                result = self.runner.forward([item.segment for item in work], hidden)
                answer = self._answer(stream, message, work, result)
        except Exception as failure:
            log.exception("a pass failed")
            why = f"shard {loaded.shard.index} failed: {failure}"
            failed = shard_pb2.PassResult(number=message.number, error=why)
            stream.up(shard_pb2.RunResponse(result=failed))
            return
        for item in work:
            # Those that are kept are not sent again; the next rows replace the others.
            for token in item.guesses:
                item.draft.sequence.append(token)
        if isinstance(answer, shard_pb2.RunResponse):
            stream.up(answer)
        elif stream.down is not None:
            stream.down(answer)

    def _answer(
        self, stream: Stream, message: shard_pb2.Pass, work: Sequence[Work], result: torch.Tensor
    ) -> shard_pb2.RunRequest | shard_pb2.RunResponse:
        if stream.down is None:
            return result_to_proto(message.number, draw_all(work, result))
        onward = shard_pb2.Pass(number=message.number, rows=message.rows, hidden=to_bytes(result))
        return shard_pb2.RunRequest(forward=onward)

    def _work(self, rows: shard_pb2.PassRows) -> Work:
        """Brings the sequence to where the rows end. Raises InvalidRequest or InternalError."""
        draft = self._draft(rows.sequence_id)
        tokens, guesses = list(rows.token_ids), rows.num_guesses
        end = rows.position + len(tokens)
        wanted = rows.num_logits in {0, guesses + 1} and guesses < len(tokens)
        if not wanted or end > draft.max_length:
            raise InvalidRequest(f"rows of sequence {rows.sequence_id} do not fit together")
        if max(tokens) >= self.runner.loaded.config.vocab_size:
            raise InvalidRequest("rows hold a token beyond the vocabulary")
        sequence = draft.sequence
        follow(sequence, rows.position, tokens[: len(tokens) - guesses], final=rows.num_logits > 0)
        if not self._room.reserve(draft, end):
            raise InternalError("the KV pool of this shard is full, and shard 0's is not")
        assert sequence.table is not None
        segment = Segment(tokens, rows.position, sequence.table, rows.num_logits)
        start = sequence.chain.at(len(sequence))
        return Work(draft, segment, start, tuple(tokens[len(tokens) - guesses :]), rows.rate)


def follow(sequence: TokenSequence, position: int, tokens: Sequence[int], *, final: bool) -> None:
    """Makes `tokens` stand at `position` of a mirrored sequence.

    What stood behind them stays where they agree with what was there, for they are a part of a
    longer prefix then; `final` ones are the sequence's last.

    Raises:
        InvalidRequest: they leave a gap, or contradict the prompt.
    """
    if position > len(sequence):
        raise InvalidRequest(f"rows begin at {position}, the sequence ends at {len(sequence)}")
    agree = agreement(sequence.tokens[position:], tokens)
    if agree == len(tokens) and not final:
        return
    if position + agree < sequence.num_prompt:
        raise InvalidRequest("rows contradict the prompt")
    sequence.rollback(position + agree)
    for token in tokens[agree:]:
        sequence.append(token)
