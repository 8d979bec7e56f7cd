"""Good and bad peers of the DICOM node, many at once: `python -m tests.fuzz.node_peers --rounds 20`.

A receiver in a process of its own gets, in each round, 50 associations at the same time: good ones, aborted ones, images
that end half way, wrong transfer syntaxes, unknown SOP classes, PDUs that are too long or no DICOM at all, data sets without an
end, and peers that send a byte now and then. Ends with status 1 unless every good image was acknowledged and stored, no half
image was, and the process stayed below its memory limit.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import multiprocessing
import os
import random
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from pydicom.uid import MPEG2MPML, CTImageStorage, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from tests.helpers.dicom_peers import associate, command_set, connect, data_pdu, dx, send

MEMORY = 200 * 2**20
"""Bytes that the receiver may use beyond those after its start, with 50 associations of images of 4 MB."""
LEVELS = np.arange(2048 * 2048, dtype=np.uint32).reshape(2048, 2048) % 251


def serve(folder: str, pipe: object) -> None:
    """Run a receiver; tell its port, then numbers of images and peak memory when asked."""
    from monai_wscxr.node.queue import Queue
    from monai_wscxr.node.receiver import Receiver

    receiver = Receiver(
        Queue(Path(folder)), "WSCXR", "127.0.0.1", 0, reserve=0, largest_queue=10**6, largest_image=2**24
    )
    receiver.start()
    pipe.send(receiver.port)
    before = _peak()
    while pipe.recv() == "state":
        partial = len(list(receiver.queue.incoming.iterdir()))
        pipe.send((receiver.queue.totals()["received"], partial, receiver.server.open, _peak() - before))
    os._exit(0)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def good(port: int, draw: random.Random) -> str:
    """Send an image."""
    image = dx(LEVELS)
    image.PatientComments = str(draw.random())
    return "stored" if send(port, image) == [0x0000] else "PROBLEM: a good image was refused"


def aborted(port: int, draw: random.Random) -> str:
    """Abort in the middle of an association."""
    connection = associate(port)
    if connection.is_established:
        connection.abort()
    return "aborted"


def half(port: int, draw: random.Random) -> str:
    """Send a part of an image and leave."""
    connection = connect(port)
    connection.sendall(data_pdu(command_set(), 1, 1) + data_pdu(b"\0" * draw.randrange(100_000), 0, 0))
    connection.close()
    return "half"


def syntax(port: int, draw: random.Random) -> str:
    """Propose what the node does not take."""
    contexts = [
        (DigitalXRayImageStorageForPresentation, [MPEG2MPML]),
        (CTImageStorage, [ExplicitVRLittleEndian]),
    ]
    connection = associate(port, contexts=contexts)
    refused = not connection.accepted_contexts
    if connection.is_established:
        connection.release()
    return "refused" if refused else "PROBLEM: a class or syntax was accepted"


def oversize(port: int, draw: random.Random) -> str:
    """Announce a PDU of up to 4 GB, before or after the association."""
    connection = connect(port, draw.random() < 0.5)
    connection.sendall(
        struct.pack(">BBL", draw.choice((1, 4)), 0, draw.choice((2**32 - 1, 2**31, 2**24))) + b"x" * 4000
    )
    return _ended(connection)


def noise(port: int, draw: random.Random) -> str:
    """Send no DICOM."""
    connection = connect(port, draw.random() < 0.5)
    connection.sendall(draw.randbytes(draw.randrange(6, 5000)))
    connection.settimeout(0.5)
    return _ended(connection, may_wait=True)


def endless(port: int, draw: random.Random) -> str:
    """Send a data set without an end."""
    connection = connect(port)
    connection.sendall(data_pdu(command_set(), 1, 1))
    with contextlib.suppress(OSError):  # the node may close while this side sends
        for _ in range(1500):
            connection.sendall(data_pdu(b"\0" * 16_000, 0, 0))
    return _ended(connection)


def slow(port: int, draw: random.Random) -> str:
    """Send a byte now and then for some seconds."""
    connection = connect(port)
    for byte in data_pdu(command_set(), 1, 1)[:12]:
        connection.sendall(bytes([byte]))
        time.sleep(0.25)
    connection.close()
    return "slow"


def _ended(connection: object, may_wait: bool = False) -> str:
    """Tell whether the node has ended an association."""
    connection.settimeout(1 if may_wait else 40)
    try:
        while connection.recv(2**16):
            pass
    except TimeoutError:
        return "waits" if may_wait else "PROBLEM: the node waits for what does not come"
    except OSError:
        pass
    finally:
        connection.close()
    return "ended"


PEERS: tuple[Callable[[int, random.Random], str], ...] = (
    *([good] * 5), aborted, half, syntax, oversize, noise, endless, slow,
)  # fmt: skip


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--at_once", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="monai_wscxr-peers-") as folder:
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=serve, args=(f"{folder}/queue", there), daemon=True
        )
        process.start()
        port = here.recv()
        began = time.monotonic()
        with ThreadPoolExecutor(given.at_once) as pool:
            for _ in range(given.rounds):
                peers = [draw.choice(PEERS) for _ in range(given.at_once)]
                seeds = [random.Random(draw.random()) for _ in peers]
                futures = [pool.submit(peer, port, seed) for peer, seed in zip(peers, seeds, strict=True)]
                for peer, future in zip(peers, futures, strict=True):
                    try:
                        counts[f"{peer.__name__}: {future.result(300)}"] += 1
                    except Exception as error:
                        counts[f"{peer.__name__}: PROBLEM {type(error).__name__}"] += 1
        seconds = time.monotonic() - began
        for _ in range(400):
            here.send("state")
            received, partial, opened, memory = here.recv()
            if not opened and not partial:
                break
            time.sleep(0.2)
        here.send("end")
        process.join(20)
    for name, count in sorted(counts.items()):
        print(f"{count:5} {name}")
    print(
        f"{given.rounds} rounds of {given.at_once} associations in {seconds:.0f} s; {received} images received, {partial} half "
        f"files, {opened} connections left, {memory / 2**20:.0f} MiB more memory at most"
    )
    bad = any("PROBLEM" in name for name in counts) or partial or opened or memory > MEMORY
    return 1 if bad or received != counts["good: stored"] else 0


if __name__ == "__main__":
    sys.exit(main())
