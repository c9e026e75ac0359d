"""Memory goes back to the system where views have gone."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys
from wsisam_service.execution import memory

def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
SIDE = 4 << 20

def block():
    address = libc.malloc(SIDE)
    ctypes.memset(address, 1, SIDE)
    return address

if sys.argv[1] == "apart":
    memory.keep_large_blocks_apart()
libc.free(block())  # by its own rule glibc now keeps blocks of this size in its heap
before = resident_mb()
blocks, pins = [], []
for _ in range(40):
    blocks.append(block())
    pins.append(libc.malloc(2000))  # what lies above a block in the heap and keeps it from shrinking
for address in blocks:
    libc.free(address)
print(resident_mb() - before)
"""


def kept_mb(rule: str) -> float:
    done = subprocess.run([sys.executable, "-c", PROGRAM, rule], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc and /proc")
def test_large_blocks_go_back_when_they_are_freed_though_small_ones_lie_between() -> None:
    assert kept_mb("apart") < 10
    assert kept_mb("glibc's own") > 100  # or there is nothing left to do
