"""Locust's view of the gateway: users who chat over HTTP and gRPC, and a public that just arrives.

    locust -f tests/load/locustfile.py HttpUser GrpcUser --book build/load/known-....json \
        --host http://127.0.0.1:8000 --grpc 127.0.0.1:50050 --model smollm2-135m-instruct

`python -m tests.load` (make load) starts a stack, computes its known answers, and runs
this.

- `HttpUser`, `GrpcUser` are closed loops: each asks its next question when it has been answered.
- `HttpArrivals`, `GrpcArrivals` are open loops: one such "user" is the whole public, whose requests
  arrive as a Poisson process of `--rate` a second, whether or not earlier ones have been answered.
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import gevent
import grpc.experimental.gevent as grpc_gevent
from gevent.pool import Group
from locust import User, constant, events, task
from locust.stats import CSV_STATS_INTERVAL_SEC

from slipstream.bench.load.arrivals import poisson
from slipstream.bench.load.asks import Extras
from slipstream.bench.load.book import Book, Entry, read
from slipstream.bench.load.doors import clock
from slipstream.bench.load.outcomes import Outcome, Verdict, outcome
from slipstream.bench.load.statistics import Slo
from slipstream.core.errors import ConfigurationError
from tests.load.clients import Client, GrpcClient, HttpClient, Stay
from tests.load.tally import Tally

# After Locust's import has patched the standard library, before the first channel.
grpc_gevent.init_gevent()
_MOST_CHUNKS_BEFORE_LEAVING = 12
# Of those who leave, so many do in the queue or while their prompt is read: at once, or soon.
_IMPATIENT_SHARE, _SOON_SECONDS = 0.5, 0.5
# An answer that does not come must be given up, and counted, before Locust ends its user.
_LIMIT_SHARE, _LONGEST_SECONDS = 0.8, 600.0
# Who is refused comes back when told to, or after a second; the end of the load waits no longer
# than the most for him.
_REST_SECONDS, _MOST_REST_SECONDS = 1.0, 5.0


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    parser.add_argument("--book", required=True, help="file of known answers")
    parser.add_argument("--grpc", default="", help="host:port of the gateway's gRPC door")
    parser.add_argument("--model", default="default", help="name of the served model")
    parser.add_argument("--rate", type=float, default=1.0, help="arrivals per second (open loop)")
    parser.add_argument("--leave-share", type=float, default=0.0, help="clients that go away")
    parser.add_argument("--load-seed", type=int, default=0, help="of arrivals and leaving")
    parser.add_argument("--slo-ttft", type=float, default=2.0, help="seconds")
    parser.add_argument("--slo-tpot", type=float, default=0.1, help="seconds")
    parser.add_argument("--allow-refusals", action="store_true", help="429 is no fault")
    parser.add_argument("--unchecked", action="store_true", help="another server: no known answers")
    parser.add_argument("--figures", default="build/load/load", help="prefix of the files written")


class World:
    """What all users of this process share."""

    def __init__(self, environment: Any, book: Book) -> None:
        options = environment.parsed_options
        self.options = options
        slo = Slo(options.slo_ttft, options.slo_tpot)
        self.tally = Tally(environment, slo, allow_refusals=options.allow_refusals)
        self.dialogues = itertools.cycle(book.dialogues)
        self.entries = itertools.cycle(book.entries)
        self.extras = Extras(plain_openai=options.unchecked)
        self.draw = random.Random(options.load_seed)
        self.limit = _LIMIT_SHARE * float(options.stop_timeout) or _LONGEST_SECONDS
        self.began = clock()

    def run(self, client: Client, entry: Entry, due: float) -> Outcome:
        """One request, from its asking to its place in the tally."""
        self.tally.asked += 1
        reading = client.ask(entry.ask, due, self.extras, self._stay())
        known = None if self.options.unchecked else entry.known
        ask = entry.ask
        found = outcome(ask.name, ask.kind, reading, known, self.began)
        self.tally.add(client.protocol, found)
        return found

    def _stay(self) -> Stay:
        draw, share = self.draw, self.options.leave_share
        if draw.random() >= share:
            return Stay()
        if draw.random() < _IMPATIENT_SHARE:
            return Stay(seconds=draw.choice((0.0, draw.uniform(0.0, _SOON_SECONDS))))
        return Stay(chunks=draw.randint(1, _MOST_CHUNKS_BEFORE_LEAVING))

    def http(self) -> Client:
        return HttpClient(self.options.host, self.options.model, self.limit)

    def grpc(self) -> Client:
        if not self.options.grpc:
            raise ConfigurationError("users of gRPC need --grpc HOST:PORT")
        return GrpcClient(self.options.grpc, self.limit)


@events.init.add_listener
def _begin(environment: Any, **_: Any) -> None:
    book = read(Path(environment.parsed_options.book))
    if book is None:
        raise ConfigurationError(f"--book: {environment.parsed_options.book} is no book of answers")
    environment.world = World(environment, book)


@events.quitting.add_listener
def _end(environment: Any, **_: Any) -> None:
    # Locust writes its CSVs by the clock, and not once more at the end.
    gevent.sleep(CSV_STATS_INTERVAL_SEC + 0.2)
    tally = environment.world.tally
    tally.write(Path(environment.parsed_options.figures))
    environment.process_exit_code = tally.exit_code


class _Closed(User):
    abstract = True
    wait_time = constant(0)
    client: Client

    @task
    def talk(self) -> None:
        """A whole dialogue; each turn is asked when the one before has been answered, or when its
        refusal told to come back."""
        world: World = self.environment.world
        for entry in next(world.dialogues):
            found = world.run(self.client, entry, clock())
            if found.verdict is Verdict.REFUSED:
                gevent.sleep(min(found.retry_after or _REST_SECONDS, _MOST_REST_SECONDS))


class HttpUser(_Closed):
    def on_start(self) -> None:
        self.client = self.environment.world.http()


class GrpcUser(_Closed):
    def on_start(self) -> None:
        self.client = self.environment.world.grpc()


class _Arrivals(User):
    abstract = True
    wait_time = constant(0)
    fixed_count = 1
    client: Client

    def on_start(self) -> None:
        world: World = self.environment.world
        self._asking = Group()
        self._start = clock()
        self._times = poisson(world.options.rate, world.options.load_seed)

    @task
    def arrive(self) -> None:
        """Waits for the next arrival and lets it ask by itself; late ones count from when due."""
        world: World = self.environment.world
        due = self._start + next(self._times)
        gevent.sleep(max(0.0, due - clock()))
        self._asking.spawn(world.run, self.client, next(world.entries), due)

    def on_stop(self) -> None:
        """Nobody who has arrived is sent away."""
        self._asking.join()


class HttpArrivals(_Arrivals):
    def on_start(self) -> None:
        super().on_start()
        self.client = self.environment.world.http()


class GrpcArrivals(_Arrivals):
    def on_start(self) -> None:
        super().on_start()
        self.client = self.environment.world.grpc()
