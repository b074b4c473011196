"""A program goes on and writes its files although its output is closed, full or not read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys, time
from pathlib import Path
from sn_imagenet.output import fail_safe_output
with fail_safe_output():
    with open(sys.argv[1], "w") as file:
        for line in range(2000):
            print("out", line, flush=True)
            print("err", line, file=sys.stderr)
            sys.stderr.isatty(), sys.stdout.encoding
            if line == 0:
                time.sleep(0.2)
        for descriptor in (1, 2):
            os.write(descriptor, b"a library")
        file.write("done")
sys.exit(75)
"""


@pytest.mark.parametrize("output", ["2>&-", ">&- 2>&-", "> /dev/full 2>&1", "2>&1 | head -1"])
def test_a_program_continues_when_its_output_is_closed_or_full(tmp_path: Path, output: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = (
        f'"{sys.executable}" "{program}" "{tmp_path / "file"}" {output}; exit ${{PIPESTATUS[0]}}'
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 75, done
    assert (tmp_path / "file").read_text() == "done"


def test_a_working_output_receives_every_line(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "file")], capture_output=True, text=True
    )
    assert done.stdout.count("out") == done.stderr.count("err") == 2000
