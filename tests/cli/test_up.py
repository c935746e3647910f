from __future__ import annotations

import io
import json
import shlex
import socket
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from slipstream.cli import checks
from slipstream.cli import up as command
from slipstream.cli.addresses import claim, reachable
from slipstream.cli.choices import Placement
from slipstream.cli.main import run
from slipstream.cli.services import Plan, services, shard_cores, split_cores, usable_cores
from slipstream.core.errors import ConfigurationError
from slipstream.core.layer_plan import LayerPlan
from slipstream.core.model_folder import fingerprint
from slipstream.wire.process import read_settings
from verifier_service.settings import Settings as VerifierSettings


def plan(**changes) -> Plan:
    fields = {
        "model": Path("/models/m"),
        "name": "m's name",
        "http": "127.0.0.1:8000",
        "grpc": "127.0.0.1:50050",
        "verifier": "127.0.0.1:50051",
        "drafter": "127.0.0.1:50052",
        "verifier_cpus": (0, 1),
        "drafter_cpus": (2,),
        "common": {"device": None, "log-level": "warning"},
        "verifier_options": {"max-sequences": 4},
        "drafter_options": {"layer-plan": None},
        "gateway_options": {"api-keys": Path("keys")},
    }
    return Plan(**{**fields, **changes})


def options(arguments: tuple[str, ...]) -> dict[str, str]:
    pairs = arguments[3:]
    assert all(name.startswith("--") for name in pairs[::2])
    return dict(zip(pairs[::2], pairs[1::2], strict=True))


def test_command_lines_of_the_three_services() -> None:
    """Each service gets what it was given and nothing for what was left to its default."""
    drafter, verifier, gateway = services(plan())
    assert [s.command[:3] for s in (drafter, verifier, gateway)] == [
        (sys.executable, "-m", module)
        for module in ("drafter_service", "verifier_service", "gateway")
    ]
    assert options(drafter.command) == {
        "--model": "/models/m",
        "--listen": "127.0.0.1:50052",
        "--served-model-name": "m's name",
        "--cpus": "2",
        "--threads": "1",
        "--log-level": "warning",
    }
    assert options(verifier.command) == {
        "--model": "/models/m",
        "--listen": "127.0.0.1:50051",
        "--drafter": "127.0.0.1:50052",
        "--served-model-name": "m's name",
        "--cpus": "0,1",
        "--threads": "2",
        "--log-level": "warning",
        "--max-sequences": "4",
    }
    assert options(gateway.command) == {
        "--model": "/models/m",
        "--verifier": "127.0.0.1:50051",
        "--http": "127.0.0.1:8000",
        "--grpc": "127.0.0.1:50050",
        "--served-model-name": "m's name",
        "--api-keys": "keys",
    }


def test_shards_are_processes_in_a_row() -> None:
    """Each shard is told its place and where the next one is; the last one starts first."""
    started = services(plan(shards=("127.0.0.1:6001", "127.0.0.1:6002"), drafter_cpus=(2, 3, 4)))
    assert [service.name for service in started] == [
        "drafter shard 2", "drafter shard 1", "drafter", "verifier", "gateway",
    ]  # fmt: skip
    last, middle, first = (options(service.command) for service in started[:3])
    told = ("--shard-index", "--shard-count", "--listen", "--next", "--cpus")
    assert [[given.get(name) for name in told] for given in (first, middle, last)] == [
        ["0", "3", "127.0.0.1:50052", "127.0.0.1:6001", "2"],
        ["1", "3", "127.0.0.1:6001", "127.0.0.1:6002", "3"],
        ["2", "3", "127.0.0.1:6002", None, "4"],
    ]
    assert options(started[3].command)["--drafter"] == "127.0.0.1:50052"
    assert [service.vital for service in started] == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("cores", "count", "expected"),
    [
        ((1,), 2, [(1,), (1,)]),
        ((), 2, [(), ()]),
        ((4, 5), 2, [(4,), (5,)]),
        ((0, 1, 2), 2, [(0, 1), (2,)]),
        ((0, 1, 2, 3, 4), 3, [(0, 1), (2,), (3, 4)]),
    ],
)
def test_cores_of_shards(cores, count, expected) -> None:
    """Every core goes to one shard, nearly as many to each; too few are shared by all."""
    assert shard_cores(cores, count) == expected


def test_without_drafter_there_are_two_services() -> None:
    """The verifier is told that there is no drafter, and none is started."""
    verifier, gateway = services(plan(drafter=None))
    assert (verifier.name, gateway.name) == ("verifier", "gateway")
    assert options(verifier.command)["--drafter"] == "off"


def commands(monkeypatch, model, *extra: str) -> list[dict[str, str]]:
    """What `up` with these options would tell drafter, verifier and gateway."""
    plans = []

    async def serve(plan, policy, *, keys) -> None:
        plans.append(plan)

    monkeypatch.setattr(command, "serve", serve)
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    ports = [f"--{name}=127.0.0.1:0" for name in ("http", "grpc", "verifier-listen")]
    arguments = [*ports, "--drafter-listen=127.0.0.1:0", "--model", str(model)]
    app = typer.Typer()
    app.command()(command.up)
    ended = CliRunner().invoke(app, [*arguments, *extra])
    assert ended.exit_code == 0, ended.output
    return [options(service.command) for service in services(plans[0])]


def test_the_precision_is_the_verifiers(monkeypatch, tiny_model_dir) -> None:
    """--precision int8 reaches the verifier's command line and not the drafter's."""
    drafter, verifier, _ = commands(monkeypatch, tiny_model_dir, "--precision", "int8")
    assert verifier["--precision"] == "int8"
    assert "--precision" not in drafter


@pytest.mark.parametrize(
    ("option", "value", "drafters", "verifiers"),
    [
        ("--early-stop", "on", True, False),
        ("--kv-context", "commit", True, False),
        ("--draft-length", "3", False, True),
        ("--draft-length", "auto", False, True),
        ("--window", "5", False, True),
        ("--kv-leases", "0", False, True),
        ("--ngram", "off", True, True),
    ],
)
def test_options_of_drafting_reach_whom_they_are_for(
    monkeypatch, tiny_model_dir, option, value, drafters, verifiers
) -> None:
    """Each setting is on the command line of the services that know it, and on no other."""
    drafter, verifier, gateway = commands(monkeypatch, tiny_model_dir, option, value)
    assert drafter.get(option) == (value if drafters else None)
    assert verifier.get(option) == (value if verifiers else None)
    assert option not in gateway


def test_further_options_reach_the_service_that_they_are_for(monkeypatch, tiny_model_dir) -> None:
    """What `up` has no option for is passed on, and is what the service then works with."""
    given = "--max-wait 2.5 --step-rows '128'"
    drafter, told, gateway = commands(monkeypatch, tiny_model_dir, "--verifier-args", given)
    settings = read_settings(VerifierSettings, [word for pair in told.items() for word in pair])
    assert (settings.max_wait, settings.step_rows) == (2.5, 128)
    assert not any("--max-wait" in others for others in (drafter, gateway))


@pytest.mark.parametrize(
    ("service", "words"),
    [
        ("verifier", "--listen 0.0.0.0:50051"),
        ("verifier", "--lis=0.0.0.0:50051"),
        ("verifier", "--metrics 0.0.0.0:9400"),
        ("gateway", "--http 0.0.0.0:80"),
        ("drafter", "--model elsewhere"),
    ],
)
def test_further_options_change_nothing_that_is_settled(service, words) -> None:
    """No address, whose openness `up` has checked, is changed behind its back."""
    with pytest.raises(ConfigurationError, match=f"of the {service} is settled"):
        services(plan(more={service: tuple(words.split())}))


@pytest.mark.parametrize("asked", ["auto", "separate"])
def test_shards_and_verifier_are_side_by_side(monkeypatch, tiny_model_dir, asked) -> None:
    """Shards cannot follow a verifier to other cores, so both sides are told to stay apart."""
    monkeypatch.setattr(command, "usable_cores", lambda: (0, 1, 2, 3))
    extra = ("--drafter-shards", "2", "--placement", asked)
    *shards, verifier, _ = commands(monkeypatch, tiny_model_dir, *extra)
    assert verifier["--placement"] == "separate"
    assert [told["--cpus"] for told in (*shards, verifier)] == ["3", "2", "0,1"]


@pytest.mark.parametrize(
    ("length", "window", "good"),
    [
        ("8", 8, True),
        ("64", None, True),
        ("auto", 1, True),
        (None, 1, True),
        ("9", 8, False),
        ("65", None, False),
        ("0", None, False),
        ("-1", None, False),
        ("٣", None, False),
        ("9" * 5000, None, False),
    ],
)
def test_draft_length_and_window(length, window, good) -> None:
    """No more drafts in a step than there can be ahead, and numbers of a sane size."""
    if good:
        checks.check_lengths(length, window, Placement.auto)
    else:
        with pytest.raises(ConfigurationError, match="--draft-length"):
            checks.check_lengths(length, window, Placement.auto)


def test_a_fixed_length_takes_no_turns() -> None:
    """A length that never waits is refused where the verifier would have to wait."""
    checks.check_lengths("auto", None, Placement.shared)
    with pytest.raises(ConfigurationError, match="--placement shared"):
        checks.check_lengths("4", None, Placement.shared)


@pytest.mark.parametrize(
    ("cores", "drafter", "apart", "expected"),
    [
        ((0, 1), True, True, ((0,), (1,))),
        ((0, 1), True, False, ((0, 1), (0, 1))),
        ((0, 1), False, True, ((0, 1), ())),
        ((3,), True, True, ((), ())),
        ((3,), True, False, ((), ())),
        ((2, 3, 5), True, True, ((2, 3), (5,))),
        ((), True, True, ((), ())),
    ],
)
def test_cores_are_shared_out(cores, drafter, apart, expected) -> None:
    """Each model service has cores of its own where that is wanted and there are two or more."""
    assert split_cores(cores, drafter, apart=apart) == expected


def test_ready_line_can_be_pasted() -> None:
    """The one line holds a curl command that a shell splits into a URL and valid JSON."""
    line = command.ready_line(plan(name="m"), keys=True)
    assert "\n" not in line
    words = shlex.split(line.partition("Try: ")[2])
    assert words[:2] == ["curl", "http://127.0.0.1:8000/v1/chat/completions"]
    assert "Authorization: Bearer $SLIPSTREAM_API_KEY" in words
    body = json.loads(words[-1])
    assert body["model"] == "m"
    assert body["max_tokens"] <= 100, "an answer that nobody waits minutes for"


def test_wildcard_addresses_are_reached_over_loopback() -> None:
    """What listens on all addresses is asked, and shown, at one that can be connected to."""
    assert "curl http://127.0.0.1:81/v1" in command.ready_line(plan(http="0.0.0.0:81"), keys=False)
    assert reachable("[::]:1") == "[::1]:1"
    assert reachable("[::5]:1") == "[::5]:1"


def test_port_in_use_names_port_and_option() -> None:
    """An address that somebody listens on is refused with what to do."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} .* in use.*--http"):
            claim({"--http": f"127.0.0.1:{port}"})


def test_two_options_with_one_port() -> None:
    """The same port asked for twice is refused; port 0 gives each its own."""
    free = claim({"--http": "127.0.0.1:0", "--grpc": "127.0.0.1:0"})
    assert len(set(free.values())) == 2
    with pytest.raises(ConfigurationError, match="--grpc"):
        claim({"--http": free["--http"], "--grpc": free["--http"]})


@pytest.mark.parametrize("address", ["8000", "host:", ":1", "a:b", "h:70000", "192.0.2.1:1"])
def test_addresses_that_cannot_be(address: str) -> None:
    """Malformed addresses and those of other machines are refused with the option's name."""
    with pytest.raises(ConfigurationError, match="--http"):
        claim({"--http": address})


@pytest.mark.parametrize("given", ["x", "0,", "99999"])
def test_cores_that_cannot_be(given: str) -> None:
    """Core numbers are checked before anything is started."""
    with pytest.raises(ConfigurationError, match="--verifier-cpus"):
        checks.cores("--verifier-cpus", given, ())
    first = usable_cores()[0]
    assert checks.cores("--verifier-cpus", str(first), ()) == (first,)


@pytest.mark.parametrize("option", ["--verifier-listen", "--drafter-listen"])
def test_inner_services_listen_on_loopback_only(option: str) -> None:
    """What has no keys cannot be opened to other machines."""
    for address in ("127.0.0.1:0", "127.8.0.1:1", "localhost:0", "[::1]:0"):
        checks.inner_on_loopback({option: address, "--http": "0.0.0.0:80"})
    for address in ("0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.org:0"):
        with pytest.raises(ConfigurationError, match=rf"{option} .*other machines.*no keys"):
            checks.inner_on_loopback({option: address})


@pytest.mark.parametrize("option", ["--layer-plan", "--drafter-cpus"])
def test_options_of_a_drafter_that_is_off(option: str) -> None:
    """They would change nothing, so they are refused by name."""
    checks.unused_without_drafter({option: None})
    with pytest.raises(ConfigurationError, match=rf"{option} .*--drafter is off"):
        checks.unused_without_drafter({option: "x"})


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "slipstream.cli", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def slipstream(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The same in this process, without half a second of imports each time."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["slipstream", *arguments])
        with pytest.raises(SystemExit) as ended:
            run()
    return subprocess.CompletedProcess(arguments, ended.value.code, out.getvalue(), err.getvalue())


def test_errors_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    """What the user can repair is told in a line without a traceback, before anything starts."""
    ports = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    ports += ["--verifier-listen", "127.0.0.1:0", "--drafter-listen", "127.0.0.1:0"]
    start = ["up", "--model", str(tmp_path), *ports]
    broken = tmp_path / "broken-keys"
    broken.write_text("not a key\n")
    plan = tmp_path / "plan.json"
    plan.write_text('{"precision": "int3"}')
    with socket.create_server(("127.0.0.1", 0)) as other:
        used = f"127.0.0.1:{other.getsockname()[1]}"
        cases = {
            "no model folder": start,
            "in use": [*start, "--http", used],
            "there is no model": ["up", "--model", "./nowhere", *ports],
            "broken-keys, line 1": [*start, "--api-keys", str(broken)],
            "missing-keys": [*start, "--api-keys", str(tmp_path / "missing-keys")],
            "--verifier-listen 0.0.0.0:0 is open": [*start, "--verifier-listen", "0.0.0.0:0"],
            "--drafter-listen 0.0.0.0:0 is open": [*start, "--drafter-listen", "0.0.0.0:0"],
            "--layer-plan is for": [*start, "--drafter", "off", "--layer-plan", "auto"],
            "--drafter-cpus is for": [*start, "--drafter", "off", "--drafter-cpus", "0"],
            "there is no model '?'": ["fetch", "?"],
            "nowhere.json": [*start, "--layer-plan", str(tmp_path / "nowhere.json")],
            "precision must be one of": [*start, "--layer-plan", str(plan)],
            "--placement shared needs": [*start, "--drafter-shards", "2", "--placement", "shared"],
            "from 1 to 4, which is --window": [*start, "--draft-length", "5", "--window", "4"],
        }
        all_ended = {message: slipstream(*arguments) for message, arguments in cases.items()}
        all_ended["no model folder"] = process(*cases["no model folder"])
        for message, ended in all_ended.items():
            assert ended.returncode == 2, ended.stderr
            assert message in ended.stderr
            assert len(ended.stderr.splitlines()) == 1, ended.stderr
            assert ended.stdout == ""


def test_version_and_help() -> None:
    """The version is printed; bench passes --help on to its own command."""
    assert slipstream("--version").stdout.startswith("slipstream ")
    for name in ("up", "chat", "fetch", "bench"):
        ended = slipstream(name, "--help")
        assert ended.returncode == 0, ended.stderr
        assert f"slipstream.cli {name}" in ended.stdout or f"slipstream {name}" in ended.stdout


def test_an_adaptive_plan_is_not_for_shards(tmp_path: Path) -> None:
    """Asked for both, `up` says so in a line before anything is loaded or started."""
    options = ["--layer-plan", "adaptive", "--drafter-shards", "2"]
    ended = slipstream("up", "--model", str(tmp_path), *options)
    assert ended.returncode == 2
    assert "--layer-plan adaptive needs a drafter in one piece" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_metrics_take_ports_in_a_row() -> None:
    """The verifier answers at the address given, the drafter and its shards behind it."""
    addresses = checks.metrics_addresses("127.0.0.1:9400", 3)
    assert list(addresses.values()) == ["127.0.0.1:9400", "127.0.0.1:9401", "127.0.0.1:9402"]
    assert set(checks.metrics_addresses("127.0.0.1:0", 2).values()) == {"127.0.0.1:0"}
    assert checks.metrics_addresses(None, 3) == {}
    with pytest.raises(ConfigurationError, match="3 ports in a row"):
        checks.metrics_addresses("127.0.0.1:65534", 3)
    made = services(plan(shards=("127.0.0.1:50053",), metrics=tuple(addresses.values())))
    told = {s.name: options(s.command).get("--metrics") for s in made}
    assert told == {
        "verifier": "127.0.0.1:9400",
        "drafter": "127.0.0.1:9401",
        "drafter shard 1": "127.0.0.1:9402",
        "gateway": None,
    }


def test_what_the_model_rules_out(tmp_path: Path, tiny_model_dir: Path) -> None:
    """A plan for another model, and more shards than layers: one line, before anything starts."""
    file = tmp_path / "plan.json"
    LayerPlan(model_fingerprint="0123456789abcdef").save(file)
    ports = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    ports += ["--verifier-listen", "127.0.0.1:0", "--drafter-listen", "127.0.0.1:0"]
    model = str(tiny_model_dir)
    ended = slipstream("up", "--model", model, *ports, "--layer-plan", str(file))
    assert ended.returncode == 2
    assert "made for model 0123456789ab, this one is " in ended.stderr
    assert fingerprint(tiny_model_dir)[:12] in ended.stderr
    assert "Starting" not in ended.stderr
    ended = slipstream("up", "--model", model, *ports, "--drafter-shards", "5")
    assert ended.returncode == 2
    assert "a model of 4 layers cannot be split into 5 shards" in ended.stderr
    assert "Starting" not in ended.stderr
