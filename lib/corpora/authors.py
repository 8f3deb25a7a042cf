"""The authors' published pickles, read without running them: tensors, strings, numbers and containers, nothing else.
They hold lists of sets {tensor[1, 149, 32], age word, gender word} (github.com/Orya-s/DeepLearningSound). A pickle is a
program: only instructions that fill containers are let through, and only five names may be called."""

import argparse
import hashlib
import io
import math
import pickle
import pickletools
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from lib import paths, stages
from lib.corpora.labels import ages_of, is_known
from lib.corpora.sieve import Sieve
from lib.store import StoreWriter
from lib.tables import WINDOWS, empty_table, save_table
from lib.tasks import make_tasks, save_tasks

CORPUS = "pickles"
BIGGEST = 200_000_000  # bytes of a file; the published ones are of 1 to 2 MB
INSTRUCTIONS = 100_000  # of a file at most, about 50 an entry; twice as many could be nested too deep for the processor
NOTE = (
    "embeddings as the paper's authors published them, without their sound: baselines that listen, sounds of errors, "
    "model folders and 06_predict are left out; without speakers' names: a file counts as a speaker"
)
ALLOWED = {
    "PROTO", "FRAME", "STOP", "MARK", "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_SET", "ADDITEMS", "FROZENSET",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1",
    "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "GLOBAL", "STACK_GLOBAL", "REDUCE", "MEMOIZE", "PUT", "BINPUT",
    "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET",
}  # fmt: skip


class _Reader(pickle.Unpickler):
    """Python's own unpickler with five names to call, and no more bytes to build than the file has."""

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content))
        self.left = 2 * len(content)  # protocols 0 to 2 hold bytes as text, which becomes bytes

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        known = {
            "torch._utils._rebuild_tensor_v2": _build_tensor,
            "torch.storage._load_from_bytes": self._load_storage,
            "_codecs.encode": lambda text, encoding: self._spend(text).encode("latin1"),  # bytes of protocols 0 to 2
            "collections.OrderedDict": lambda *_: None,  # a tensor's hooks
            "builtins.set": lambda items=(): set(self._spend(items)),
        }
        name = f"{module}.{name}".replace("__builtin__", "builtins")  # protocols 0 to 2 were made for Python 2
        if name not in known:
            raise ValueError(f"it asks for {name}"[:100])
        return known[name]

    def _spend(self, content: Any) -> Any:
        self.left -= len(content)
        if self.left < 0:
            raise ValueError("it asks for more than it holds")
        return content

    def _load_storage(self, content: bytes) -> Any:
        if content[:2] == b"PK":
            raise ValueError("a storage that is an archive")
        return torch.load(io.BytesIO(self._spend(content)), weights_only=True)


def _build_tensor(storage: Any, offset: int, size: tuple, stride: tuple, *_: Any) -> torch.Tensor:
    """A tensor over a storage, as torch._utils._rebuild_tensor_v2 does it, but never beyond or beside the storage."""
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    count = storage.untyped().nbytes() // storage.dtype.itemsize
    if min([offset, *size, *stride]) < 0 or last >= max(count, 1) or math.prod(size) > count:
        raise ValueError(f"a tensor of shape {list(size)[:8]} in a storage of {count} numbers")
    return torch.empty(0, dtype=storage.dtype).set_(storage.untyped(), offset, size, stride)


def read_pickle(content: bytes) -> Any:
    """The object in a pickle of tensors, strings, numbers, lists, tuples and sets; some exception for anything else."""
    for count, (opcode, argument, position) in enumerate(pickletools.genops(content)):
        if opcode.name not in ALLOWED or count >= INSTRUCTIONS or ("PUT" in opcode.name and argument > INSTRUCTIONS):
            raise ValueError(f"instruction {count:,} ({opcode.name}, at byte {position}) is not allowed")
    return _Reader(content).load()


def read_items(path: Path) -> list[dict[str, Any] | str]:
    """Every entry of a file: frames [T, D], age_raw, gender_raw ("" = none), or why not; ValueError if another kind."""
    try:
        if path.stat().st_size > BIGGEST:
            raise ValueError(f"{path.stat().st_size:,} bytes, at most {BIGGEST:,} are read")
        entries = read_pickle(path.read_bytes())
        if not isinstance(entries, list):
            raise ValueError(f"a {type(entries).__name__} and no list of sets")
    except Exception as error:  # also of pickle, of torch, or of a name called with what it does not take
        reason = str(error) if type(error) is ValueError else f"broken ({type(error).__name__})"
        raise ValueError(f"{path}: {reason}; it is not read") from error
    return [_read_entry(entry) for entry in entries]


def _read_entry(entry: Any) -> dict[str, Any] | str:
    parts = list(entry) if isinstance(entry, (list, tuple, set)) and len(entry) <= 3 else []
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    words = [str(part).strip() for part in parts if isinstance(part, str) or (type(part) is int and abs(part) < 1000)]
    if len(tensors) != 1 or len(words) + 1 != len(parts):
        return "not one tensor and words"
    frames = tensors[0].float().numpy()
    frames = frames[0] if frames.ndim == 3 and len(frames) == 1 else frames
    if frames.ndim != 2 or not frames.size:
        return f"tensor of another shape: {list(tensors[0].shape)}"
    if not np.isfinite(frames).all():
        return "values that are no numbers"
    genders = [word for word in words if word and is_known(word, "gender")]
    ages = [word for word in words if word and word not in genders and is_known(word, "age", "decade")]
    if len(genders) > 1 or len(ages) > 1 or len(genders + ages) < len([word for word in words if word]):
        return f"words that are no age and gender: {', '.join(words)[:80]}"
    return {"frames": frames, "age_raw": "".join(ages), "gender_raw": "".join(genders)}


def import_pickles(files: Iterable[Path], run: str) -> dict[str, int]:
    """Turn the authors' pickles into the finished stages 01 to 03 of `run`, so that 04_train can go on; return counts.
    Nobody says who speaks: a file counts as one speaker and recording, since neighbours were cut from one sound.
    A person may still be in several. The store holds the frames and their time mean and deviation."""
    files = sorted(Path(file) for file in files)
    if len({file.name for file in files}) < len(files) or not files:
        raise ValueError(f"{len(files)} files, some of the same name: give at least one, and each name once")
    checksums = [stages.file_checksum(file) for file in files]
    downloaded = stages.open_stage("01_download", run, {"pickles": checksums}, 2)
    segmented = stages.open_stage("02_segment", run, {"window_s": 3.0, "step_s": 2.0}, 2, [downloaded])
    embedded = stages.open_stage("03_embed", run, {"encoder": "", "feature": "emission"}, 2, [downloaded, segmented])
    with tempfile.TemporaryFile(dir=embedded.folder) as values:  # all frames may be more than memory holds
        rows, dropped, shape = _list_entries(files, values)
        rows = rows.assign(speaker_id=CORPUS + ":" + rows["path"], **ages_of(rows["age_raw"], "decade"))
        sieve = Sieve(CORPUS, rows.assign(recording_id=rows["speaker_id"], clip_id=rows["item"]))
        sieve.note(dropped)
        clips, ledger = sieve.finish()
        ids, unknown = clips["clip_id"], {"speech_ratio": np.nan, "level_db": np.nan}
        frames = np.memmap(values, np.float32, "r", shape=(len(ids), *shape))
        _save_frames(frames, embedded.folder, [f"{name}@0" for name in ids])
    windows = clips[["clip_id", "speaker_id", "start_s"]].assign(window_id=ids + "@0", duration_s=3.0, **unknown)
    windows = windows.assign(content_hash=ids, row=range(len(ids)))[list(WINDOWS.columns)]
    save_table(downloaded.path("clips.parquet"), clips, "clips")
    save_table(downloaded.path("ledger.parquet"), ledger, "ledger")
    paths.save_json(downloaded.path("roots.json"), {CORPUS: ""})
    save_tasks(downloaded, *make_tasks(["gender", "age"], ["teen", "adult"], [20], clips))
    save_table(segmented.path("windows.parquet"), windows, "windows")
    for name in ("ledger", "acoustics"):
        save_table(segmented.path(f"{name}.parquet"), empty_table(name), name)
    embedded.facts["encoder"] = {"name": "WAV2VEC2_ASR_BASE_960H", "note": NOTE, "weights_sha256": ""}
    downloaded.facts |= {"corpora": [CORPUS], "data_checksum": stages.fingerprint_of(checksums), "confounds": []}
    counts = {"files": len(files), "windows": len(windows), "dropped": len(dropped)}
    for stage in (downloaded, segmented, embedded):
        stages.finish_stage(stage, counts)
    return counts


def _list_entries(files: list[Path], values: BinaryIO) -> tuple[pd.DataFrame, list[tuple[str, ...]], tuple[int, ...]]:
    """What can be used, what not and why, and the frames' shape (T, D); they go to `values`, float32, one by one."""
    rows, dropped, shape, known = [], [], (), set()  # shape of the first window, hashes of the values so far
    for file in tqdm(files, desc="reading pickles", unit="file"):
        for number, item in enumerate(read_items(file)):
            name = f"{CORPUS}:{file.name}#{number}"
            if isinstance(item, dict):
                frames = item.pop("frames")
                shape, digest = shape or frames.shape, hashlib.sha256(frames.tobytes()).digest()
                if digest in known:  # it could land on both sides of a split
                    item = "the same values again"
                elif frames.shape != shape:
                    item = f"tensor of another shape: {list(frames.shape)}"
            if isinstance(item, str):
                dropped.append((name, item.split(":")[0], item))
            else:
                known.add(digest)
                values.write(frames.tobytes())
                rows.append({"item": name, "path": file.name, **item})
    if not rows:
        raise ValueError(f"none of {len(dropped)} entries can be used, e.g. {dropped[:1]}")
    values.flush()
    return pd.DataFrame(rows), dropped, shape


def _save_frames(frames: np.ndarray, folder: Path, window_ids: list[str]) -> None:
    """Write the windows' frames (n, T, D) and their statistics as a store."""
    shape, width = list(frames.shape[1:]), 2 * frames.shape[2]
    about = {"encoder": "", "feature": "emission", "dtype": "float32", "parts": {"emission": [0, width]}}
    writer = StoreWriter(folder, window_ids, about | {"shapes": {"statistics": [width], "frames": shape}})
    for rows in writer.missing():
        statistics = np.concatenate([frames[rows].mean(axis=1), frames[rows].std(axis=1)], axis=1)
        writer.write(rows, {"frames": frames[rows], "statistics": statistics})
    writer.finish()


def main() -> None:
    """`python -m lib.corpora.authors FOLDER --run NAME`: import every *.pkl and *.pickle of a folder."""
    parser = argparse.ArgumentParser(prog="python -m lib.corpora.authors", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="folder of the authors' pickles")
    parser.add_argument("--run", default="authors", help="name of the run that they become")
    options = parser.parse_args()
    files = [path for path in options.folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".p")]
    try:
        print(", ".join(f"{value} {name}" for name, value in import_pickles(files, options.run).items()))
    except (ValueError, OSError) as error:
        sys.exit(f"refused: {error}")


if __name__ == "__main__":
    main()
