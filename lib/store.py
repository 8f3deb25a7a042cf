"""The store of embeddings: safetensors shards and one Parquet index, resumable by shard, read through memory maps.

A finished folder holds `shard-00000.safetensors` ..., `index.parquet` (window_id → shard, row) and `store.json` (tensor
names, shapes, dtype, checksums). Tensors of a shard: `frames` [n, T, D] of the chosen feature, `layers` [n, L, D'] hidden
states averaged over time (layer 0 = the transformer's input), `conv` [n, C] convolutional features averaged over time,
`acoustics` [n, K] the baselines' features.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from lib import paths, tables
from lib.stages import file_checksum

DESCRIPTION = "store.json"


def shard_path(folder: Path, shard: int) -> Path:
    """Path of one shard in a store's folder."""
    return Path(folder) / f"shard-{shard:05d}.safetensors"


def save_shard(folder: Path, shard: int, window_ids: list[str], tensors: dict[str, np.ndarray]) -> None:
    """Write one shard whole. ValueError when a tensor has another number of rows than there are ids."""
    for name, tensor in tensors.items():
        if len(tensor) != len(window_ids):
            raise ValueError(f"shard {shard}: tensor '{name}' has {len(tensor)} rows for {len(window_ids)} windows")
    with paths.write_whole(shard_path(folder, shard)) as partial:
        contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        save_file(contiguous, partial, metadata={"window_ids": json.dumps(window_ids)})


def finish_store(folder: Path, shards: int, extra: dict | None = None) -> None:
    """Write the index and the description of a folder whose shards are all there.

    The index is read back from the shards themselves, so ids and rows cannot part. `extra` goes into the description.
    """
    frames, shapes, checksums = [], {}, {}
    for shard in range(shards):
        path = shard_path(folder, shard)
        header = read_header(path)
        ids = json.loads(header["__metadata__"]["window_ids"])
        frames.append(pd.DataFrame({"window_id": ids, "shard": shard, "row": np.arange(len(ids))}))
        shapes = {
            name: [entry["dtype"], entry["shape"][1:]] for name, entry in header.items() if name != "__metadata__"
        }
        checksums[path.name] = file_checksum(path)
    index = pd.concat(frames, ignore_index=True) if frames else tables.empty_table("index")
    tables.save_table(Path(folder) / "index.parquet", index, "index")
    description = {"windows": len(index), "tensors": shapes, "sha256": checksums, **(extra or {})}
    paths.save_json(Path(folder) / DESCRIPTION, description)


def read_header(path: Path) -> dict:
    """The JSON header of a safetensors file; ValueError when the file is cut short or no such file."""
    try:
        with open(path, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= min(path.stat().st_size - 8, 100_000_000):
                raise ValueError(f"header of {length} bytes in a file of {path.stat().st_size}")
            header = json.loads(stream.read(length))
            header["__metadata__"] = {**header.get("__metadata__", {}), "data_starts": str(8 + length)}
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: not a whole safetensors shard ({error}); delete it and run the stage again"
        ) from error
    end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    if path.stat().st_size != 8 + length + end:
        raise ValueError(
            f"{path}: {path.stat().st_size} bytes, its header asks for {8 + length + end}; delete it and run again"
        )
    return header


DTYPES = {"F16": "<f2", "F32": "<f4", "I64": "<i8", "I32": "<i4"}


def map_tensor(path: Path, name: str) -> np.ndarray:
    """Memory map of one tensor of a shard, read-only."""
    header = read_header(path)
    if name not in header:
        raise ValueError(f"{path}: no tensor '{name}' in it, there are {sorted(set(header) - {'__metadata__'})}")
    entry = header[name]
    offset = int(header["__metadata__"]["data_starts"]) + entry["data_offsets"][0]
    return np.memmap(path, DTYPES[entry["dtype"]], mode="r", offset=offset, shape=tuple(entry["shape"]))


class Store:
    """A finished store, opened for reading. `verify` checks counts and shapes; with `checksums` every byte too."""

    def __init__(self, folder: Path, checksums: bool = False):
        self.folder = Path(folder)
        if not (self.folder / DESCRIPTION).exists():
            raise ValueError(f"{self.folder}: no finished store here; run notebooks/03_embed.ipynb first")
        self.description = paths.load_json(self.folder / DESCRIPTION)
        self.index = tables.load_table(self.folder / "index.parquet", "index")
        self._position = pd.Series(np.arange(len(self.index)), index=self.index["window_id"])
        self.verify(checksums)

    def verify(self, checksums: bool = False) -> None:
        """Raise ValueError naming the shard when shards, shapes, ids or (if asked) bytes are not those written."""
        counts = self.index.groupby("shard").size()
        for shard, name in enumerate(sorted(self.description["sha256"])):
            path = self.folder / name
            header = read_header(path)
            ids = json.loads(header["__metadata__"]["window_ids"])
            if len(ids) != counts.get(shard, 0):
                raise ValueError(
                    f"{path}: {len(ids)} windows, the index has {counts.get(shard, 0)}; run the stage again"
                )
            for tensor, (dtype, shape) in self.description["tensors"].items():
                found = header.get(tensor, {"dtype": "nothing", "shape": [0]})
                if [found["dtype"], found["shape"]] != [dtype, [len(ids), *shape]]:
                    raise ValueError(
                        f"{path}: tensor '{tensor}' is {found['dtype']} {found['shape']}, not {dtype} {shape}"
                    )
            if checksums and file_checksum(path) != self.description["sha256"][name]:
                raise ValueError(
                    f"{path}: its bytes have changed since it was written; delete it and run the stage again"
                )

    def __len__(self) -> int:
        return len(self.index)

    def describe(self) -> pd.DataFrame:
        """One row a tensor: name, shape of one window, type on disk."""
        rows = [
            {"tensor": name, "shape": " x ".join(map(str, shape)), "stored as": dtype, "windows": len(self)}
            for name, (dtype, shape) in self.description["tensors"].items()
        ]
        return pd.DataFrame(rows)

    def features(self, name: str, window_ids: pd.Series | list[str]) -> Features:
        """Tensor `name` of these windows, in this order, as an object that is indexed by rows and stays on disk."""
        ids = pd.Index(window_ids)
        position = self._position.reindex(ids)
        if position.isna().any():
            missing = ids[position.isna()]
            raise ValueError(
                f"{self.folder}: {len(missing)} windows have no embedding, e.g. {missing[0]}; run 03_embed again"
            )
        where = self.index.iloc[position.to_numpy(dtype=np.int64)]
        shards = [map_tensor(self.folder / shard, name) for shard in sorted(self.description["sha256"])]
        return Features(shards, where["shard"].to_numpy(), where["row"].to_numpy())


class Features:
    """Rows of one tensor, spread over shards: `features[rows]` gives float32 (len(rows), ...); `len` gives the rows."""

    def __init__(self, shards: list[np.ndarray], shard: np.ndarray, row: np.ndarray):
        self._shards, self._shard, self._row = shards, shard, row

    def __len__(self) -> int:
        return len(self._row)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole, as one array would have."""
        return (len(self), *self._shards[0].shape[1:])

    def __getitem__(self, rows) -> np.ndarray:
        rows = np.atleast_1d(np.asarray(rows))
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        out = np.empty((len(rows), *self.shape[1:]), dtype=np.float32)
        for shard in np.unique(self._shard[rows]):
            here = np.flatnonzero(self._shard[rows] == shard)
            out[here] = self._shards[shard][self._row[rows[here]]]
        return out

    def all(self) -> np.ndarray:
        """Everything at once, float32: for tensors that are small."""
        return self[np.arange(len(self))]


def fill_store(
    folder: Path, window_ids: list[str], shard_windows: int, make: Callable, extra: dict | None = None
) -> int:
    """Make the shards that are missing and finish the store; return how many were made now.

    `make(first, last)` returns the tensors of windows [first, last). A shard that is on disk, whole and of the right ids is
    kept, so a killed run loses one shard at most.
    """
    made = 0
    bounds = range(0, len(window_ids), shard_windows)
    for shard, first in enumerate(bounds):
        ids = list(window_ids[first : first + shard_windows])
        if not _is_whole(shard_path(folder, shard), ids):
            save_shard(folder, shard, ids, make(first, first + len(ids)))
            made += 1
    finish_store(folder, len(bounds), extra)
    return made


def _is_whole(path: Path, window_ids: list[str]) -> bool:
    if not path.exists():
        return False
    try:
        return json.loads(read_header(path)["__metadata__"]["window_ids"]) == window_ids
    except ValueError:
        path.unlink()
        return False
