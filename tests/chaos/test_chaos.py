"""Short storms over whole stacks, as `make chaos` runs long ones."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.integration.processes import ROOT

# More than the storm, its starts and its aftermath take on a busy machine.
SECONDS = 240
# A gateway and a verifier are killed within its first second, the store and many links hit within
# six.
SAME = ("--generations", "50", "--tokens", "80", "200", "--every", "0.8", "--seed", "2379")

pytestmark = [pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(SECONDS + 30)]


@pytest.fixture
def storm(tmp_path):
    """Runs `python -m tests.chaos` with more options; its exit code, its words and its figures."""

    def run(*more: str):
        out = tmp_path / "chaos.json"
        words = [sys.executable, "-m", "tests.chaos", "--out", str(out), *more]
        done = subprocess.run(
            words,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert out.exists(), done.stdout + done.stderr
        return done.returncode, done.stdout + done.stderr, json.loads(out.read_text())

    return run


def test_no_client_notices_more_than_a_pause(storm):
    """Gateways, verifiers, drafters, Redis and the links between them fail all the time; every
    answer is the undisturbed one, every acknowledged turn is kept, and nothing is left held."""
    code, words, figures = storm(*SAME)
    assert code == 0, words
    assert figures["generations"] >= 50
    assert figures["verdicts"]["right"] == figures["generations"]
    assert {"resumed", "repeated"} <= figures["ways"].keys()
    hit = {role for counts in figures["faults"].values() for role in counts}
    assert hit >= {"gateway", "verifier", "store", "link"}


def test_without_resumption_the_same_storm_is_lost(storm):
    """The proof of the proof: with gateways that neither resume nor fail over, an answer is lost
    soon, and the run says so."""
    off = ("--resumption", "off", "--stop-at-fault", "--patience", "30")
    code, words, figures = storm(*SAME, *off)
    assert code == 1, words
    assert figures["verdicts"]["lost"] + figures["verdicts"]["wrong"] >= 1
