"""Data files for tests: small ones in the publishers' formats, the real ones where they are, and a web server that misbehaves on demand."""

from __future__ import annotations

import gzip
import os
import pickle
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.io import savemat

ROOT = Path(__file__).parents[1]

IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CIFAR_NAMES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")


def real_data(name: str) -> Path:
    """The folder with the published files of a data set; the test is skipped where there is none."""
    candidates = [Path(os.environ[name]) for name in ("SCHEDOPT_DATA_DIR",) if os.environ.get(name)]
    for root in (*candidates, ROOT.parent / "shared" / "data"):
        if (root / name).is_dir():
            return root / name
    pytest.skip(f"the files of {name} are not here (SCHEDOPT_DATA_DIR names their folder)")


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def idx_arrays(train: int = 30, test: int = 10, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Images and labels of the train part, then of the test part; every label occurs where there are enough samples."""
    rng = np.random.default_rng(seed)
    parts = []
    for count in (train, test):
        parts += [rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), (np.arange(count) % 10).astype(np.uint8)]
    return parts


def write_idx(folder: Path, arrays: list[NDArray[np.uint8]], *, zipped: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(IDX_NAMES, arrays, strict=True):
        data = idx_bytes(array)
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(data) if zipped else data)


def cifar_batch(rows: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"data": rng.integers(0, 256, (rows, 3072), dtype=np.uint8), "labels": [int(k) % 10 for k in range(rows)]}


def python2_pickle(batch: dict[str, Any]) -> bytes:
    """The bytes that Python 2 wrote at protocol 2: byte strings as strings, and NumPy's old module names."""
    data = batch["data"]
    text = lambda value: b"U" + bytes([len(value)]) + value  # noqa: E731
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85" + text(b"b") + b"\x87R("
    array += b"K\x01J" + struct.pack("<i", data.shape[0]) + b"M\x00\x0c\x86cnumpy\ndtype\nq\x03" + text(b"u1") + b"K\x00K\x01\x87R("
    array += b"K\x03" + text(b"|")
    array += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", data.nbytes) + data.tobytes() + b"tb"
    labels = b"](" + b"".join(b"K" + bytes([label]) for label in batch["labels"]) + b"e"
    return b"\x80\x02}q\x00(" + text(b"data") + array + text(b"labels") + labels + text(b"batch_label") + text(b"testing") + b"u."


def write_cifar(folder: Path, rows: int = 12) -> None:
    """A folder named as published whose batches are too small to be the published ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(CIFAR_NAMES):
        (folder / name).write_bytes(pickle.dumps(cifar_batch(rows, number), protocol=2))


def svhn_arrays(count: int = 20, seed: int = 0) -> dict[str, NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 10 + 1).astype(np.uint8)
    return {"X": rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8), "y": labels[:, np.newaxis]}


def write_svhn(folder: Path, train: int = 20, test: int = 10) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    savemat(folder / "train_32x32.mat", svhn_arrays(train), do_compression=True)
    savemat(folder / "test_32x32.mat", svhn_arrays(test, seed=1), do_compression=True)


@dataclass
class WebServer:
    """What the server offers and how it behaves; ``requests`` lists (path, Range header) of what was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    ranges: bool = True
    #: the connection breaks after so many bytes of each answer
    breaks_after: int | None = None
    #: answered instead of the file
    status: int | None = None
    #: bytes sent although the file has ended
    surplus: bytes = b""
    #: whether an answer tells its length
    tells_length: bool = True
    #: whether it comes in chunks (HTTP/1.1)
    chunked: bool = False
    #: where an answer to a range starts, if not where it was asked to
    starts_at: int | None = None


@contextmanager
def web_server() -> Iterator[WebServer]:
    """An HTTP server on this machine; paths are ``/DATA_SET/FILE``."""
    state = WebServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append((self.path, self.headers.get("Range")))
            data = state.files.get(self.path.lstrip("/"))
            if state.status is not None or data is None:
                self.send_error(state.status or 404)
                return
            start = 0
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            self.protocol_version = "HTTP/1.1" if state.chunked else "HTTP/1.0"
            self.close_connection = True
            if state.ranges and asked:
                start = int(asked[1]) if state.starts_at is None else state.starts_at
                if start >= len(data):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(data)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            else:
                self.send_response(200)
            body = data[start:] + state.surplus
            if state.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            elif state.tells_length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            sent = body[: state.breaks_after]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(sent), sent) if state.chunked else sent)
            if state.chunked and len(sent) == len(body):
                self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_: Any) -> None:
            """Tests are silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
