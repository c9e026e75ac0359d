"""What encryption adds to storing and fetching one LiteMedSAM view (3.4 MB), in a folder and in a real Redis: the same
blob with and without keys, in turns.

    python bench/encrypted_store.py [--rounds 100]

Writes bench/results/encrypted_store.json: medians and 95th percentiles in milliseconds, and the CPU time of the cipher
alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "service"))

from processes import RedisServer  # noqa: E402

from wsisam_service.stores.embeddings import EmbeddingStore  # noqa: E402
from wsisam_service.stores.encryption import StoreKey, encrypted  # noqa: E402
from wsisam_service.stores.folder_store import FolderStore  # noqa: E402
from wsisam_service.stores.redis_store import RedisStore  # noqa: E402

BLOB_BYTES = 3_407_872
"""A view of LiteMedSAM in float16."""
NAME = "lite_medsam:79d8c9dca6db:1:aa:2:4:8"
WARM_UP = 5


def summary(seconds: list[float]) -> dict[str, float]:
    milliseconds = sorted(1e3 * one for one in seconds[WARM_UP:])
    return {
        "p50": round(statistics.median(milliseconds), 2),
        "p95": round(milliseconds[int(0.95 * len(milliseconds))], 2),
    }


def time_cipher(blob: bytes, rounds: int) -> dict[str, dict[str, float]]:
    """CPU time, which says the same on a busy machine."""
    key, spent = StoreKey(os.urandom(32)), {"seal": [], "open": []}  # type: dict[str, list[float]]
    for _ in range(rounds):
        started = time.thread_time()
        sealed = key.seal(NAME, blob)
        between = time.thread_time()
        key.open(NAME, sealed)
        spent["seal"].append(between - started)
        spent["open"].append(time.thread_time() - between)
    return {name: summary(values) for name, values in spent.items()}


async def time_store(below: EmbeddingStore, blob: bytes, rounds: int) -> dict[str, dict[str, float]]:
    stores = {"plain": below, "encrypted": encrypted(below, [StoreKey(os.urandom(32))])}
    spent: dict[str, list[float]] = {f"{verb} {name}": [] for name in stores for verb in ("put", "get")}
    for _ in range(rounds):
        for name, store in stores.items():
            started = time.perf_counter()
            await store.put(NAME, blob)
            between = time.perf_counter()
            assert await store.get(NAME) is not None
            spent[f"put {name}"].append(between - started)
            spent[f"get {name}"].append(time.perf_counter() - between)
    await below.aclose()
    return {name: summary(values) for name, values in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds + WARM_UP
    blob = os.urandom(BLOB_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder) / "redis")
        report = {
            "bytes": BLOB_BYTES,
            "rounds": rounds - WARM_UP,
            "cipher_cpu_ms": time_cipher(blob, rounds),
            "folder_ms": asyncio.run(time_store(FolderStore(Path(folder) / "store", 1 << 30), blob, rounds)),
            "redis_ms": asyncio.run(time_store(RedisStore(server.url, "emb", timeout_s=10), blob, rounds)),
        }
        server.close()
    print(json.dumps(report, indent=1))
    (REPOSITORY / "bench" / "results" / "encrypted_store.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
