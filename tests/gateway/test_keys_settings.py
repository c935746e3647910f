from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from gateway import keys, settings
from gateway.server import serving
from gateway.tokenizer import Tokenizer
from slipstream.core.errors import CheckpointError, ConfigurationError, NotAuthenticated


def test_add_and_check(tmp_path, capsys):
    """A key is printed once; the file holds its hash, privately; the key then opens."""
    file = tmp_path / "keys"
    assert keys.main(["add", "alice", str(file)]) == 0
    key = capsys.readouterr().out.strip()
    assert keys.main(["add", "bob", str(file)]) == 0
    assert key not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    ring = keys.KeyRing(file)
    assert ring.check(f"Bearer {key}") == "alice"
    for wrong in (None, "", "Bearer", f"Basic {key}", f"Bearer {key}x", f"Bearer {key[:-1]}"):
        with pytest.raises(NotAuthenticated):
            ring.check(wrong)
    assert keys.main(["add", "alice", str(file)]) == 2
    assert keys.main(["add", "a:b", str(file)]) == 2


def test_check_command(tmp_path, capsys):
    """A usable file is accepted in silence; of another it is said once what is wrong."""
    file = tmp_path / "keys"
    keys.add("alice", file)
    assert keys.main(["check", str(file)]) == 0
    file.write_text("not a key\n")
    assert keys.main(["check", str(file)]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert f"{file}, line 1" in told.err


def test_every_entry_is_compared(tmp_path, monkeypatch):
    """The number of comparisons does not depend on which key it was."""
    file = tmp_path / "keys"
    made = [keys.add(f"k{number}", file) for number in range(4)]
    ring = keys.KeyRing(file)
    calls = []
    real = keys.hmac.compare_digest
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: calls.append(1) or real(a, b))
    for place, key in enumerate((made[0], made[3], "unknown")):
        with contextlib.suppress(NotAuthenticated):
            ring.check(f"Bearer {key}")
        assert len(calls) == 4 * (place + 1)


def test_reload(tmp_path, monkeypatch, caplog):
    """A changed file is read again; a broken one keeps the old keys and is logged."""
    monkeypatch.setattr(keys, "_CHECK_SECONDS", 0.0)
    file = tmp_path / "keys"
    old = keys.add("old", file)
    ring = keys.KeyRing(file)
    new = keys.add("new", file)
    assert ring.check(f"Bearer {new}") == "new"
    good = file.read_text()
    file.write_text("# a comment\nnot a key\n")
    with caplog.at_level(logging.ERROR):
        assert ring.check(f"Bearer {old}") == "old"
    assert "line 2" in caplog.text
    file.write_text("".join(line for line in good.splitlines(True) if line.startswith("new")))
    with pytest.raises(NotAuthenticated):
        ring.check(f"Bearer {old}")


async def test_http_needs_a_key(make_rig, tmp_path):
    """Everything but the probes needs a key, and says so in OpenAI's shape."""
    file = tmp_path / "keys"
    key = keys.add("me", file)
    async with make_rig(api_keys=file) as rig:
        refused = await rig.complete("x")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert refused.headers["www-authenticate"] == "Bearer"
        for path in ("/metrics", "/docs", "/openapi.json", "/v1/models", "/nothing"):
            assert (await rig.http.get(path)).status_code == 401
        rig.http.headers["Authorization"] = f"Bearer {key}"
        assert (await rig.complete("x")).status_code == 200


@pytest.mark.parametrize("option", ["--http", "--grpc"])
@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "[::]", "example.org"])
def test_open_addresses_need_keys(option, host, tmp_path):
    """Without keys only loopback can be bound; the error names --api-keys."""
    arguments = ["--model", str(tmp_path), option, f"{host}:8000"]
    with pytest.raises(ConfigurationError, match="--api-keys"):
        settings.load(arguments)
    assert settings.load([*arguments, "--api-keys", "some-file"])
    assert settings.load(["--model", str(tmp_path), option, "[::1]:8000"])


def test_environment(tmp_path, monkeypatch):
    """The environment sets what the command line leaves open."""
    monkeypatch.setenv("SLIPSTREAM_GATEWAY_MODEL", str(tmp_path))
    monkeypatch.setenv("SLIPSTREAM_GATEWAY_SERVED_MODEL_NAME", "env-name")
    monkeypatch.setenv("SLIPSTREAM_GATEWAY_MAX_BODY_BYTES", "2048")
    loaded = settings.load(["--max-body-bytes", "4096"])
    assert (loaded.model_name, loaded.max_body_bytes) == ("env-name", 4096)
    monkeypatch.delenv("SLIPSTREAM_GATEWAY_SERVED_MODEL_NAME")
    assert settings.load([]).model_name == tmp_path.name


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--model", "x", "--http", "nowhere"],
        ["--model", "x", "--http", "127.0.0.1:99999"],
        ["--model", "x", "--verifier", "y"],
        ["--model", "x", "--verifier", "y:1,,z:1"],
        ["--model", "x", "--verifier", "dns:///y"],
        ["--model", "x", "--lost-after", "0"],
        ["--model", "x", "--max-failovers", "-1"],
        ["--model", "x", "--idle-timeout", "soon"],
    ],
)
def test_bad_settings(arguments):
    """Settings that cannot be are configuration errors, which name the option."""
    with pytest.raises(ConfigurationError, match="--"):
        settings.load(arguments)


def start(model, *more) -> subprocess.Popen:
    command = [sys.executable, "-m", "gateway", "--model", str(model), "--http", "127.0.0.1:0"]
    return subprocess.Popen(
        [*command, "--grpc", "127.0.0.1:0", *more], stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_stops_cleanly(model_folder, number):
    """The process starts without a verifier, says that it is open locally, and ends with 0."""
    with start(model_folder) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "serving tiny-chat" in line:
                break
        os.kill(process.pid, number)
        assert process.wait(20) == 0
        assert any("--api-keys" in line for line in lines)


def test_a_model_that_cannot_be_read(model_folder, tmp_path):
    """A file that the system does not give, or that is no text, is named, whichever it is."""
    for folder in (tmp_path / ("x" * 300), tmp_path):
        with pytest.raises(CheckpointError, match=re.escape(str(folder))):
            Tokenizer(folder)
    for name, content in (
        ("tokenizer_config.json", b"\xff"),
        ("special_tokens_map.json", b"[" * 200_000),
        ("chat_template.jinja", b"\xff"),
    ):
        folder = shutil.copytree(model_folder, tmp_path / name)
        (folder / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            Tokenizer(folder)


@pytest.mark.parametrize("fault", ["port", "model", "tokenizer", "option"])
def test_configuration_errors_exit_with_2(fault, model_folder, tmp_path):
    """A port in use, a missing or broken model, an unknown option: one clear line, exit code 2."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        (tmp_path / "tokenizer.json").write_text("{")
        cases = {
            "port": (model_folder, "--http", f"127.0.0.1:{taken.getsockname()[1]}"),
            "model": (tmp_path / "none",),
            "tokenizer": (tmp_path,),
            "option": (model_folder, "--wrong", "1"),
        }
        with start(*cases[fault]) as process:
            said = process.stderr.read()
            assert process.wait(20) == 2
    assert "Traceback" not in said
    assert "error" in said.splitlines()[-1]


def test_no_torch():
    """The gateway reaches neither torch nor transformers."""
    code = (
        "import gateway.server, sys; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_grpc_port_in_use(model_folder):
    """A gRPC port in use stops the start, and frees the HTTP port again."""
    with socket.socket() as taken, socket.socket() as probe:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
        probe.close()
        chosen = settings.Settings(
            model=model_folder,
            http=f"127.0.0.1:{free}",
            grpc=f"127.0.0.1:{taken.getsockname()[1]}",
        )
        with pytest.raises(ConfigurationError, match="cannot listen"):
            async with asyncio.timeout(20), serving(chosen):
                pass
        with socket.socket() as again:
            again.bind(("127.0.0.1", free))
