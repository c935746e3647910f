"""What every service exports, from collectors over engines of a tiny model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from prometheus_client import Metric

from drafter_service.adaptive import AdaptiveCounters
from drafter_service.engine import DrafterEngine
from drafter_service.kv_load import KvCounters
from drafter_service.metrics import DrafterMetrics, Watch, shard_metrics
from drafter_service.shard_counters import ShardCounters
from drafter_service.shard_engine import ShardEngine
from gateway.metrics import Metrics
from slipstream.discovery.endpoints import Endpoints
from slipstream.engine.checkpoint import load_model
from slipstream.engine.runner import ModelRunner
from slipstream.wire.mailbox import Mailbox
from slipstream.wire.proto import drafter_pb2
from slipstream.wire.telemetry.metrics import PREFIX
from tests.verifier.rig import Rig, write_checkpoint
from verifier_service.drafter_choice import DrafterChoice, Drafters
from verifier_service.drafter_link import DrafterLink
from verifier_service.metrics import VerifierMetrics
from verifier_service.rounds import Rounds

# Metrics of a component, by their names without the prefix.
Exported = dict[str, dict[str, Metric]]


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    folder = write_checkpoint(tmp_path_factory.mktemp("tiny"))
    return ModelRunner(load_model(folder), 2**20)


@pytest.fixture(scope="session")
def exported(runner: ModelRunner) -> Exported:
    engine = Rig(runner).engine
    loop = asyncio.new_event_loop()
    choice = DrafterChoice(Drafters(Endpoints("127.0.0.1:1", "--drafter"), ""))
    link = DrafterLink(choice, drafter_pb2.Hello(), Mailbox(loop), Rounds(engine.telemetry))
    drafter = DrafterEngine(runner, lambda *_: None)
    watch, shard = Watch(), ShardCounters()
    reads: dict[str, Callable[[], object]] = {
        "gateway": Metrics("m")._families,
        "verifier": VerifierMetrics(engine, link),
        "drafter": DrafterMetrics(drafter, watch, KvCounters(), AdaptiveCounters(), shard),
    }
    found = {
        component: {family.name.removeprefix(PREFIX): family for family in read()}
        for component, read in reads.items()
    }
    behind = {f.name.removeprefix(PREFIX) for f in shard_metrics(ShardEngine(runner))}
    assert behind <= set(found["drafter"]), "a shard tells nothing that the first one does not"
    loop.close()
    return found
