"""Without the extras: what a gateway's image and a machine that only asks have installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_ALONE = '''
"""Runs each command line in a process where the packages of the extras are not to be found."""
import contextlib, io, json, runpy, sys

HIDDEN = {
    "torch", "transformers", "safetensors", "accelerate", "gguf", "numba", "llvmlite",
    "optuna", "matplotlib", "scipy", "pip",
}

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
import gateway.__main__, gateway.keys, gateway.server
from slipstream.cli import main

ended = []
for line in json.loads(sys.argv[1]):
    sys.argv = line
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            if line[0] == "slipstream":
                main.run()
            runpy.run_module(line[0], run_name="__main__")
        except SystemExit as end:
            ended.append([end.code, out.getvalue()])
print(json.dumps(ended))
'''
INSTALL = "pip install 'slipstream-serve[engine]'"


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Exit code and output of each command, by its name."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "m.gguf").write_bytes(b"GGUF")
    commands = {
        "help": ["--help"],
        "fetch --help": ["fetch", "--help"],
        "up": ["up"],
        "bench": ["bench", "serve"],
        "tune": ["tune"],
        "default": ["fetch"],
        "default to": ["fetch", "default", "--to", str(folder / "a")],
        "gguf": ["fetch", str(folder / "m.gguf"), "--to", str(folder / "b"), "--tokenizer-only"],
        "tokenizer": ["fetch", "default", "--to", str(folder / "c"), "--tokenizer-only"],
        "no folder": ["fetch", "--tokenizer-only"],
    }
    lines = {name: ["slipstream", *words] for name, words in commands.items()}
    lines |= {role: [f"{role}_service", "--model", str(folder)] for role in ("verifier", "drafter")}
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, json.dumps(list(lines.values()))],
        check=True,
        env={**os.environ, "SLIPSTREAM_CACHE": str(folder / "cache")},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
    )
    found = [(code, output.strip()) for code, output in json.loads(done.stdout)]
    return dict(zip(lines, found, strict=True))


@pytest.mark.parametrize("name", ["help", "fetch --help"])
def test_help_needs_nothing(ended: dict[str, tuple[int, str]], name: str) -> None:
    """All commands are listed, and their options told."""
    assert ended[name][0] == 0
    assert "fetch" in ended[name][1]


@pytest.mark.parametrize(
    ("name", "what", "install"),
    [
        ("up", "slipstream up needs torch, transformers,", INSTALL),
        ("bench", "slipstream bench needs torch,", INSTALL),
        ("tune", "slipstream tune needs optuna and matplotlib", INSTALL.replace("engine", "tune")),
        ("default", "preparing smollm2-135m-instruct needs torch,", INSTALL),
        ("default to", "preparing smollm2-135m-instruct needs torch,", INSTALL),
        ("gguf", "converting a .gguf file needs torch,", INSTALL),
        ("no folder", "--tokenizer-only needs a folder", "--to"),
    ],
)
def test_one_line_says_what_to_install(
    ended: dict[str, tuple[int, str]], name: str, what: str, install: str
) -> None:
    """A command that needs more ends before it downloads anything, without a traceback."""
    code, output = ended[name]
    assert code == 2
    assert output.startswith(f"slipstream: {what}")
    assert output.endswith(install)
    assert "\n" not in output


@pytest.mark.parametrize("role", ["verifier", "drafter"])
def test_a_model_service_says_what_to_install(ended: dict[str, tuple[int, str]], role: str) -> None:
    """`python -m verifier_service` ends with exit code 2 and one line, without a traceback."""
    code, output = ended[role]
    assert code == 2
    assert output.startswith(f"{role}: error: the {role} needs torch, transformers,")
    assert output.endswith(INSTALL)
    assert "\n" not in output


def test_the_default_models_tokenizer(ended: dict[str, tuple[int, str]]) -> None:
    """A gateway has it without torch."""
    code, output = ended["tokenizer"]
    assert code == 0
    assert (Path(output) / "tokenizer.json").is_file()
