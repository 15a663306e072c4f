"""Signals as wishes: the first is heard, the second stops, and what the shell had ignored stays so."""

import os
import signal
import subprocess
import sys

import pytest

from vidllm.interrupts import Interrupts

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")


def test_the_first_is_a_wish_and_the_second_an_end() -> None:
    before = signal.getsignal(signal.SIGTERM)
    told: list[bool] = []
    with Interrupts(lambda: told.append(True)) as interrupts:
        assert not interrupts.asked
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert told == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_script_runs_in_the_background_is_not_stopped_by_the_terminals_ctrl_c() -> None:
    """A shell has it ignore SIGINT; SIGTERM still asks it to end."""
    program = """
import signal
from vidllm.interrupts import Interrupts
with Interrupts() as interrupts:
    signal.raise_signal(signal.SIGINT)
    print(interrupts.asked)
    signal.raise_signal(signal.SIGTERM)
    print(interrupts.asked)
print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
"""
    shell = 'trap "" INT; exec "$0" -c "$1"'
    done = subprocess.run(["sh", "-c", shell, sys.executable, program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True"]
