"""Where embeddings lie: `statistics.npy` (n, S) and, where a network will read them, `frames.npy` (n, T, D), one row a window, read
by id (`index.parquet`), described in `store.json`. They are filled in blocks, by several workers at once if need be; a block that
is whole has a marker in `blocks/`, so a killed run makes only what is missing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib import paths, tables

DESCRIPTION, INDEX = "store.json", "index.parquet"
AGAIN = "delete the folder and run 03_embed again"


class StoreWriter:
    """A store that is being filled; ValueError when the folder holds another, or other windows. `description`: shapes, dtype,
    parts of the statistics, and what made them."""

    def __init__(self, folder: Path, window_ids: list[str], description: dict[str, Any], block: int = 512) -> None:
        self.folder, self.window_ids, self.block = Path(folder), window_ids, block
        self.description = description | {"windows": len(window_ids), "block": block}
        begun, index = self.folder / "begun.json", self.folder / INDEX
        if begun.exists():
            same = paths.load_json(begun) == self.description
            if not same or tables.load_table(index, "index")["window_id"].tolist() != list(window_ids):
                raise ValueError(f"{self.folder} holds embeddings of another kind; delete it and run 03_embed again")
        else:
            for name, shape in description["shapes"].items():
                with paths.write_whole(self.folder / f"{name}.npy") as partial:
                    shape = (len(window_ids), *shape)
                    np.lib.format.open_memmap(partial, mode="w+", dtype=description["dtype"], shape=shape).flush()
            (self.folder / "blocks").mkdir(exist_ok=True)
            rows = pd.DataFrame({"window_id": window_ids, "row": np.arange(len(window_ids))})
            tables.save_table(index, rows, "index")
            paths.save_json(begun, self.description)

    def missing(self) -> list[slice]:
        """Rows of the blocks that are still to be made."""
        count = len(self.window_ids)
        blocks = [slice(start, min(start + self.block, count)) for start in range(0, count, self.block)]
        return [rows for rows in blocks if not (self.folder / "blocks" / f"{rows.start:08d}").exists()]

    def write(self, rows: slice, tensors: dict[str, np.ndarray]) -> None:
        """Write one block whole. ValueError naming the window when a value is no number or too large for the type."""
        dtype = self.description["dtype"]
        for name in self.description["shapes"]:
            with np.errstate(over="ignore"):
                values = np.asarray(tensors[name]).astype(dtype)
            bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if bad.any():
                window = self.window_ids[rows.start + int(bad.argmax())]
                raise ValueError(
                    f"window {window}: its {name} hold NaN, infinity or more than {dtype} can; use another "
                    'compute.precision, embed.dtype "float32", or look at the recording'
                )
            array = np.lib.format.open_memmap(self.folder / f"{name}.npy", mode="r+")
            array[rows] = values
            array.flush()
        (self.folder / "blocks" / f"{rows.start:08d}").touch()

    def finish(self) -> None:
        """Write the description, once every block is there; ValueError when one is missing."""
        if missing := self.missing():
            raise ValueError(f"{self.folder}: {len(missing)} blocks are missing; run 03_embed again")
        paths.save_json(self.folder / DESCRIPTION, self.description)


class Features:
    """Rows of an array on disk: `features[rows]` gives float32 (len(rows), ...), in this order; columns: None = all."""

    def __init__(self, path: Path, rows: np.ndarray, columns: np.ndarray | None) -> None:
        self.path, self.rows, self.columns = path, rows, columns
        self.shape = (len(rows), *(np.load(path, mmap_mode="r").shape[1:] if columns is None else [len(columns)]))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> np.ndarray:
        array = np.load(self.path, mmap_mode="r")  # for each read: what a map has read counts as this process's memory
        places = np.atleast_1d(self.rows[rows])
        order = np.argsort(places, kind="stable")  # read in the order of the disk
        values = np.empty((len(places), *array.shape[1:]), np.float32)
        values[order] = array[places[order]]
        return values if self.columns is None else values[:, self.columns]


class Store:
    """A finished store; `parts`: first and last column (exclusive) of each in the statistics, {"layer:0": [0, 512], ...}."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / DESCRIPTION).exists():
            raise ValueError(f"{self.folder}: no finished store here; run notebooks/03_embed.ipynb first")
        self.description = paths.load_json(self.folder / DESCRIPTION)
        self.parts: dict[str, list[int]] = self.description["parts"]
        index = tables.load_table(self.folder / INDEX, "index")
        self.rows = pd.Series(index["row"].to_numpy(), index=index["window_id"])
        for name, shape in self.description["shapes"].items():
            path, shape = self.folder / f"{name}.npy", (len(self), *shape)
            try:
                there = np.load(path, mmap_mode="r").shape
            except (OSError, EOFError, ValueError) as error:
                raise ValueError(f"{path}: not a whole array ({error}); {AGAIN}") from error
            if there != shape:
                raise ValueError(f"{path}: its shape is {there}, not {shape}; {AGAIN}")

    def __len__(self) -> int:
        return len(self.rows)

    def width(self, parts: list[str]) -> int:
        """Numbers a window of these parts together."""
        return sum(self.parts[name][1] - self.parts[name][0] for name in parts)

    def describe(self) -> pd.DataFrame:
        """One row a part: name, numbers a window, what they are."""
        sizes = {name: str(last - first) for name, (first, last) in self.parts.items()}
        if frames := self.description["shapes"].get("frames"):
            sizes = {f"frames of {self.description['feature']}": " x ".join(map(str, frames))} | sizes
        table = pd.DataFrame({"part": sizes.keys(), "numbers a window": sizes.values()})
        return table.assign(windows=len(self), type=self.description["dtype"])

    def frames(self, window_ids: pd.Series | list[str]) -> Features:
        """Frames (n, T, D) of these windows, in this order. ValueError when the store keeps none."""
        if "frames" not in self.description["shapes"]:
            raise ValueError(f"{self.folder}: holds no frames; name embed.feature, such as 'emission', and run again")
        return Features(self.folder / "frames.npy", self._find(window_ids), None)

    def statistics(self, window_ids: pd.Series | list[str], parts: Sequence[str] = ()) -> Features:
        """Statistics (n, S) of these windows, in this order; parts: side by side, () = all, ValueError for others."""
        unknown = [name for name in parts if name not in self.parts]
        if unknown:
            raise ValueError(f"{self.folder}: no part {unknown[0]!r} in this store, there are {', '.join(self.parts)}")
        columns = np.concatenate([np.arange(*self.parts[name]) for name in parts]) if parts else None
        return Features(self.folder / "statistics.npy", self._find(window_ids), columns)

    def _find(self, window_ids: pd.Series | list[str]) -> np.ndarray:
        rows = self.rows.reindex(pd.Index(window_ids))
        lost = rows.index[rows.isna()]
        if len(lost):
            told = f"{len(lost)} windows have no embedding, e.g. {lost[0]}; run 03_embed again"
            raise ValueError(f"{self.folder}: {told}")
        return rows.to_numpy(np.int64)


def open_stores(folder: Path) -> list[Store]:
    """The store of the windows as they are, and after it those of their altered copies."""
    copies = sorted(Path(folder).glob("copy-*"), key=lambda path: int(path.name.split("-")[1]))
    return [Store(folder), *map(Store, copies)]
