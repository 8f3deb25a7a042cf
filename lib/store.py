"""The store of embeddings: safetensors shards and one Parquet index, resumable by shard, read through memory maps.

A finished folder holds `shard-00000.safetensors` ..., `index.parquet` (window_id → shard, row) and `store.json` (tensor
names, shapes, types, checksums). Tensors of a shard: `frames` [n, T, D] of the chosen feature, `layers` [n, L, D'] hidden
states averaged over time (layer 0 = the transformer's input), `conv` [n, C] convolutional features averaged over time,
`acoustics` [n, K] the baselines' features. A shard carries its windows' ids and what made it, so that a run that was
killed goes on with its own shards and with no others.
"""

from __future__ import annotations

import functools
import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from lib import paths, tables
from lib.stages import file_checksum

DESCRIPTION = "store.json"
DTYPES = {"F16": "<f2", "F32": "<f4", "I64": "<i8", "I32": "<i4"}  # safetensors' names of what a shard may hold
MAPS = 256  # shards kept open at once: each takes a file handle, of which a process has about a thousand
LET_GO = (
    64_000_000  # bytes read (as float32) before the maps are closed: what they have read counts as this process' memory
)


# ------------------------------------------------------------------------------------------------------------- writing


def shard_path(folder: Path, shard: int) -> Path:
    """Path of one shard in a store's folder."""
    return Path(folder) / f"shard-{shard:05d}.safetensors"


def shard_ids(window_ids: list[str], shard: int, shard_windows: int) -> list[str]:
    """Ids of the windows that one shard holds, `shard_windows` a shard, in the table's order."""
    return list(window_ids[shard * shard_windows : (shard + 1) * shard_windows])


def save_shard(folder: Path, shard: int, window_ids: list[str], tensors: dict[str, np.ndarray], made: str = "") -> None:
    """Write one shard whole. `made` says by what (see `missing_shards`).

    ValueError when a tensor has another number of rows than there are ids, or holds what is no number: a store with NaN
    in it would fail only hours later. `acoustics` may hold NaN, it means "not voiced".
    """
    for name, tensor in tensors.items():
        if len(tensor) != len(window_ids):
            raise ValueError(f"shard {shard}: tensor '{name}' has {len(tensor)} rows for {len(window_ids)} windows")
        if name != "acoustics" and not np.isfinite(tensor).all():
            rows = ~np.isfinite(tensor).reshape(len(tensor), -1).all(axis=1)
            raise ValueError(
                f"shard {shard}: tensor '{name}' of window {window_ids[int(rows.argmax())]} holds NaN or infinity; "
                "use another precision, or look at the recording"
            )
    with paths.write_whole(shard_path(folder, shard)) as partial:
        contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        facts = json.dumps({"window_ids": window_ids, "made": made})  # one entry: of several, the order is drawn by lot
        save_file(contiguous, partial, metadata={"store": facts})


def missing_shards(folder: Path, window_ids: list[str], shard_windows: int, made: str = "") -> list[int]:
    """Numbers of the shards that are still to be made; what lies there but is cut short or of another kind is removed.

    A shard is kept when it is whole, holds these windows in this order, and was made by the same thing: `made` names
    encoder, feature and precision, whatever changes a value.
    """
    if shard_windows < 1:
        raise ValueError(f"shard_windows = {shard_windows}: must be at least 1")
    count = -(-len(window_ids) // shard_windows)
    wanted = {shard_path(folder, shard).name: shard for shard in range(count)}
    for path in [*Path(folder).glob("shard-*.safetensors"), *Path(folder).glob(".shard-*.safetensors")]:
        ids = shard_ids(window_ids, wanted.get(path.name, count), shard_windows)
        if not (ids and _is_whole(path, ids, made)):
            path.unlink()
    return [shard for name, shard in wanted.items() if not (Path(folder) / name).exists()]


def _is_whole(path: Path, window_ids: list[str], made: str) -> bool:
    try:
        return shard_facts(path) == (window_ids, made)
    except ValueError:
        return False


def finish_store(folder: Path, shards: int, extra: dict[str, Any] | None = None) -> None:
    """Write the index and the description of a folder whose shards are all there.

    The index is read back from the shards themselves, so ids and rows cannot part. `extra` goes into the description.
    """
    frames, shapes, checksums = [], {}, {}
    for shard in range(shards):
        path = shard_path(folder, shard)
        header = read_header(path)
        ids, _ = shard_facts(path, header)
        frames.append(pd.DataFrame({"window_id": ids, "shard": shard, "row": np.arange(len(ids))}))
        shapes = {
            name: [entry["dtype"], entry["shape"][1:]] for name, entry in header.items() if name != "__metadata__"
        }
        checksums[path.name] = file_checksum(path)
    index = pd.concat(frames, ignore_index=True) if frames else tables.empty_table("index")
    tables.save_table(Path(folder) / "index.parquet", index, "index")
    description = {"windows": len(index), "tensors": shapes, "sha256": checksums, **(extra or {})}
    paths.save_json(Path(folder) / DESCRIPTION, description)


# ------------------------------------------------------------------------------------------------------------- reading


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file; ValueError when the file is cut short or is none.

    Beside safetensors' own entries, `__metadata__` has `data_starts`, the byte at which tensors begin.
    """
    try:
        with open(path, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= min(path.stat().st_size - 8, 100_000_000):
                raise ValueError(f"header of {length} bytes in a file of {path.stat().st_size}")
            header = json.loads(stream.read(length))
            header["__metadata__"] = {**header.get("__metadata__", {}), "data_starts": str(8 + length)}
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not a whole safetensors shard ({error}); delete it and run the stage again"
        ) from error
    if path.stat().st_size != 8 + length + end:
        raise ValueError(
            f"{path}: {path.stat().st_size} bytes, its header asks for {8 + length + end}; delete it and run again"
        )
    return header


def shard_facts(path: Path, header: dict[str, Any] | None = None) -> tuple[list[str], str]:
    """Window ids of a shard and what made it; ValueError when the file is no shard of ours. `header`: None = read it."""
    try:
        facts = json.loads((header or read_header(path))["__metadata__"]["store"])
        return facts["window_ids"], facts["made"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: no shard of a store (no {error}); delete it and run the stage again") from error


def map_tensor(path: Path, name: str) -> np.ndarray:
    """Memory map of one tensor of a shard, read-only."""
    return find_tensor(path, read_header(path), name).map()


@dataclass(frozen=True)
class Place:
    """Where one tensor lies: all that a map needs, so that a shard's header is parsed once and not at every read."""

    path: Path
    dtype: str
    offset: int
    shape: tuple[int, ...]

    def map(self) -> np.ndarray:
        """Memory map of the tensor, read-only; NumPy's own `memmap` does the same in twice the time."""
        with open(self.path, "rb") as stream:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return np.ndarray(self.shape, self.dtype, content, self.offset)


def find_tensor(path: Path, header: dict[str, Any], name: str) -> Place:
    """Place of one tensor of a shard; ValueError naming those there are, or the types that can be read."""
    if name not in header or name == "__metadata__":
        raise ValueError(f"{path}: no tensor '{name}' in it, there are {sorted(set(header) - {'__metadata__'})}")
    entry = header[name]
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{path}: tensor '{name}' is stored as {entry['dtype']}, known are {list(DTYPES)}")
    begin, end = entry["data_offsets"]
    if end - begin != math.prod(entry["shape"]) * np.dtype(DTYPES[entry["dtype"]]).itemsize:
        raise ValueError(
            f"{path}: tensor '{name}' of shape {entry['shape']} has {end - begin} bytes; delete it, run again"
        )
    return Place(
        path, DTYPES[entry["dtype"]], int(header["__metadata__"]["data_starts"]) + begin, tuple(entry["shape"])
    )


class Store:
    """A finished store, opened for reading. `verify` checks counts, ids and shapes; with `checksums` every byte too."""

    def __init__(self, folder: Path, checksums: bool = False):
        self.folder = Path(folder)
        if not (self.folder / DESCRIPTION).exists():
            raise ValueError(f"{self.folder}: no finished store here; run notebooks/03_embed.ipynb first")
        self.description = paths.load_json(self.folder / DESCRIPTION)
        self.index = tables.load_table(self.folder / "index.parquet", "index")
        self._position = pd.Series(np.arange(len(self.index)), index=self.index["window_id"])
        self._places: list[dict[str, Place]] = []  # of each shard, by tensor
        self.verify(checksums)

    def verify(self, checksums: bool = False) -> None:
        """Raise ValueError naming the shard when shards, shapes, ids or (if asked) bytes are not those written."""
        listed = {shard: rows.sort_values("row")["window_id"].tolist() for shard, rows in self.index.groupby("shard")}
        names = sorted(self.description["sha256"])
        if len(self.index) != self.description["windows"] or sorted(listed) != list(range(len(names))):
            raise ValueError(
                f"{self.folder}: index and description part ({len(self.index)} and {self.description['windows']} "
                f"windows, {len(listed)} and {len(names)} shards); run the stage again"
            )
        self._places = [self._verify_shard(self.folder / name, listed[shard]) for shard, name in enumerate(names)]
        for name in names:
            if checksums and file_checksum(self.folder / name) != self.description["sha256"][name]:
                raise ValueError(
                    f"{self.folder / name}: its bytes have changed since it was written; delete it, run the stage again"
                )

    def _verify_shard(self, path: Path, listed: list[str]) -> dict[str, Place]:
        header = read_header(path)
        ids, _ = shard_facts(path, header)
        if ids != listed:
            raise ValueError(
                f"{path}: {len(ids)} windows, the index has {len(listed)}, or others; delete it, run the stage again"
            )
        for tensor, (dtype, shape) in self.description["tensors"].items():
            found = header.get(tensor, {"dtype": "nothing", "shape": []})
            if [found["dtype"], found["shape"]] != [dtype, [len(ids), *shape]]:
                raise ValueError(
                    f"{path}: tensor '{tensor}' is {found['dtype']} {found['shape']}, not {dtype} {[len(ids), *shape]}"
                )
        return {tensor: find_tensor(path, header, tensor) for tensor in self.description["tensors"]}

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
        if name not in self.description["tensors"]:
            raise ValueError(f"{self.folder}: no tensor '{name}', there are {list(self.description['tensors'])}")
        ids = pd.Index(window_ids)
        position = self._position.reindex(ids)
        if position.isna().any():
            missing = ids[position.isna()]
            raise ValueError(
                f"{self.folder}: {len(missing)} windows have no embedding, e.g. {missing[0]}; run 03_embed again"
            )
        where = self.index.iloc[position.to_numpy(dtype=np.int64)]
        shape = tuple(self.description["tensors"][name][1])
        places = [shard[name] for shard in self._places]
        return Features(places, shape, where["shard"].to_numpy(), where["row"].to_numpy())


class Features:
    """Rows of one tensor, spread over shards: `features[rows]` gives float32 (len(rows), ...); `len` gives the rows.

    `rows` is one number, a slice, or an array of numbers or booleans. At most `MAPS` shards are open at a time, and all
    are closed after every `LET_GO` bytes, so that an epoch's memory does not grow with the store. Opening one anew costs
    little: its header was parsed when the store was opened.
    """

    def __init__(self, places: list[Place], shape: tuple[int, ...], shard: np.ndarray, row: np.ndarray):
        self._shard, self._row, self._shape = shard, row, shape
        self._map, self._read = functools.lru_cache(MAPS)(lambda number: places[number].map()), 0

    def __len__(self) -> int:
        return len(self._row)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole, as one array would have."""
        return (len(self), *self._shape)

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        rows = np.atleast_1d(np.asarray(rows))
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        out = np.empty((len(rows), *self._shape), dtype=np.float32)
        shard = self._shard[rows]
        for number in np.unique(shard):
            here = np.flatnonzero(shard == number)
            out[here] = self._map(int(number))[self._row[rows[here]]]
        self._read += out.nbytes
        if self._read > LET_GO:
            self._map.cache_clear()
            self._read = 0
        return out

    def all(self) -> np.ndarray:
        """Everything at once, float32: for tensors that are small."""
        return self[:]
