"""The authors' published pickles, read without running them: tensors, strings, numbers and containers, nothing else.

The paper's embeddings come as pickled lists of sets {tensor[1, 149, 32], age word, gender word} (github.com/Orya-s/
DeepLearningSound). A pickle is a program: here only instructions that fill containers are let through, and only five
names may be called, of which one builds a tensor from bytes in the file (torch.load with weights_only=True).

    python -m lib.corpora.authors FOLDER        then: make reports RUN=authors
"""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import pickle
import pickletools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from lib import paths, stages
from lib.corpora.labels import ages_of, genders_of, is_known
from lib.store import finish_store, save_shard
from lib.tables import CLIPS, WINDOWS, empty_table, save_table

CORPUS = "pickles"
IMPORTED = "as published"  # the encoder of such a store: none that could be asked about new recordings
BIGGEST = 200_000_000  # bytes of a file; the published ones are of 1 to 2 MB
INSTRUCTIONS = 100_000  # of a file at most, about 50 an entry; twice as many could be nested too deep for the processor
ALLOWED = {
    "PROTO", "FRAME", "STOP", "MARK", "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_SET", "ADDITEMS", "FROZENSET",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1",
    "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "GLOBAL", "STACK_GLOBAL", "REDUCE", "MEMOIZE", "PUT", "BINPUT",
    "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET",
}  # fmt: skip


class UnsafePickle(ValueError):
    """A pickle that asks for more than tensors, strings, numbers and containers, or that is broken."""


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
            raise UnsafePickle(f"it asks for {name}"[:100])
        return known[name]

    def _spend(self, content: Any) -> Any:
        self.left -= len(content)
        if self.left < 0:
            raise UnsafePickle("it asks for more than it holds")
        return content

    def _load_storage(self, content: bytes) -> Any:
        if content[:2] == b"PK":
            raise UnsafePickle("a storage that is an archive")
        return torch.load(io.BytesIO(self._spend(content)), weights_only=True)


def _build_tensor(storage: Any, offset: int, size: tuple, stride: tuple, *_: Any) -> torch.Tensor:
    """A tensor over a storage, as torch._utils._rebuild_tensor_v2 does it, but never beyond or beside the storage."""
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if min([offset, *size, *stride]) < 0 or last >= max(len(storage), 1) or math.prod(size) > len(storage):
        raise UnsafePickle(f"a tensor of shape {list(size)[:8]} in a storage of {len(storage)} numbers")
    return torch.empty(0, dtype=storage.dtype).set_(storage.untyped(), offset, size, stride)


def read_pickle(content: bytes) -> Any:
    """The object in a pickle made of tensors, strings, numbers, lists, tuples and sets; UnsafePickle for anything else."""
    try:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(content)):
            is_far = "PUT" in opcode.name and argument > INSTRUCTIONS
            if opcode.name not in ALLOWED or count >= INSTRUCTIONS or is_far:
                raise UnsafePickle(f"instruction {count:,} ({opcode.name}, at byte {position}) is not allowed")
        return _Reader(content).load()
    except UnsafePickle:
        raise
    except Exception as error:  # of pickle, of torch, or of a name called with what it does not take
        raise UnsafePickle(f"broken ({type(error).__name__})") from error


class Item(NamedTuple):
    """One stored window: frames [T, D] and the two words that stood beside it ("" = none)."""

    frames: np.ndarray
    age: str
    gender: str


def read_items(path: Path) -> list[tuple[Item | None, str]]:
    """Every entry of one file as (item, ""), or (None, reason) where it cannot be used.

    Raises UnsafePickle naming the file when the file as a whole is none of the authors' kind.
    """
    try:
        if path.stat().st_size > BIGGEST:
            raise UnsafePickle(f"{path.stat().st_size:,} bytes, at most {BIGGEST:,} are read")
        entries = read_pickle(path.read_bytes())
        if not isinstance(entries, list):
            raise UnsafePickle(f"a {type(entries).__name__} and no list of sets")
    except UnsafePickle as error:
        raise UnsafePickle(f"{path}: {error}; it is not read") from error
    return [_read_entry(entry) for entry in entries]


def _read_entry(entry: Any) -> tuple[Item | None, str]:
    parts = list(entry) if isinstance(entry, (list, tuple, set)) and len(entry) <= 3 else []
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    words = [str(part).strip() for part in parts if isinstance(part, str) or (type(part) is int and abs(part) < 1000)]
    if len(tensors) != 1 or len(words) + 1 != len(parts):
        return None, "not one tensor and words"
    frames = tensors[0].float().numpy()
    frames = frames[0] if frames.ndim == 3 and len(frames) == 1 else frames
    if frames.ndim != 2 or not frames.size:
        return None, f"tensor of another shape: {list(tensors[0].shape)}"
    if not np.isfinite(frames).all():
        return None, "values that are no numbers"
    genders = [word for word in words if word and is_known(word, "gender")]
    ages = [word for word in words if word and word not in genders and is_known(word, "age", "decade")]
    if len(genders) > 1 or len(ages) > 1 or len(genders + ages) < len([word for word in words if word]):
        return None, f"words that are no age and gender: {', '.join(words)[:80]}"
    return Item(frames, (ages or [""])[0], (genders or [""])[0]), ""


def import_pickles(files: Iterable[Path], run: str) -> dict[str, int]:
    """Turn the authors' pickles into the finished stages 01 to 03 of `run`, so that 04_train can go on; return counts.

    There is no sound in them, and nobody says who speaks. Entries of one file count as one speaker and one recording,
    since neighbours were cut from neighbouring audio; a person may still be in several files, so "unseen speaker" cannot
    be promised. Equal values count once, since they could land on both sides of a split. The store holds `frames` and
    their time average as the one layer, a shard a file.
    """
    files = sorted(Path(file) for file in files)
    if len({file.name for file in files}) < len(files) or not files:
        raise ValueError(f"{len(files)} files, some of the same name: give at least one, and each name once")
    checksums = [stages.file_checksum(file) for file in files]
    chain = [stages.open_stage("01_download", run, {"pickles": checksums}, 1)]
    chain.append(stages.open_stage("02_segment", run, {"window_s": 3.0, "step_s": 2.0}, 1, chain[:1]))
    chain.append(stages.open_stage("03_embed", run, {"encoder": IMPORTED, "feature": "emission"}, 1, chain[:2]))
    tables, dropped, shape, known = [], [], None, set()  # shape of the first window, hashes of the values so far
    for file in tqdm(files, desc="reading pickles", unit="file"):
        rows, frames = [], []
        for number, (item, reason) in enumerate(read_items(file)):
            clip_id = f"{CORPUS}:{file.name}#{number}"
            if item:
                shape, digest = shape or item.frames.shape, hashlib.sha256(item.frames.tobytes()).digest()
                if item.frames.shape != shape:
                    reason = f"tensor of another shape: {list(item.frames.shape)}"
                reason = "the same values again" if digest in known else reason
                known.add(digest)
            if reason:
                dropped.append({"corpus": CORPUS, "item": clip_id, "reason": reason.split(":")[0], "detail": reason})
            else:
                rows.append({"clip_id": clip_id, "path": file.name, "age_raw": item.age, "gender_raw": item.gender})
                frames.append(item.frames)
        if rows:
            ids, stacked = [f"{row['clip_id']}@0" for row in rows], np.stack(frames).astype(np.float32)
            tensors = {"frames": stacked, "layers": stacked.mean(axis=1)[:, None]}
            save_shard(chain[2].folder, len(tables), ids, tensors, "pickles")
            tables.append(pd.DataFrame(rows))
    if not tables:
        raise ValueError(f"none of {len(dropped)} entries can be used, e.g. {dropped[:1]}")
    finish_store(chain[2].folder, len(tables), {"encoder": IMPORTED})
    counts = {"files": len(files), "windows": sum(map(len, tables)), "dropped": len(dropped)}
    _save_tables(chain, pd.concat(tables, ignore_index=True), dropped)
    for stage in chain:
        stages.finish_stage(stage, counts)
    note = "embeddings as the paper's authors published them: no sound, no speakers' names, a file counts as a speaker"
    encoder = {"name": "WAV2VEC2_ASR_BASE_960H", "note": note, "weights_sha256": ""}
    checksum = stages.fingerprint_of(checksums)
    stages.note_run(run, encoder=encoder, corpora=[CORPUS], data_checksum=checksum, confounds=[])
    return counts


def _save_tables(chain: list[stages.Stage], rows: pd.DataFrame, dropped: list[dict[str, str]]) -> None:
    speaker, nothing = CORPUS + ":" + rows["path"], empty_table("ledger")
    clips = rows.assign(
        corpus=CORPUS, speaker_id=speaker, recording_id=speaker, language="", start_s=0.0, end_s=np.nan,
        gender=genders_of(rows["gender_raw"]), official_split=None, **ages_of(rows["age_raw"], "decade"),
    )  # fmt: skip
    windows = rows.assign(
        window_id=rows["clip_id"] + "@0", speaker_id=speaker, start_s=0.0, duration_s=3.0, speech_ratio=np.nan,
        level_db=np.nan, content_hash=rows["clip_id"],
    )  # fmt: skip
    save_table(chain[0].path("clips.parquet"), clips[list(CLIPS.columns)], "clips")
    save_table(chain[0].path("ledger.parquet"), pd.DataFrame(dropped) if dropped else nothing, "ledger")
    save_table(chain[1].path("windows.parquet"), windows[list(WINDOWS.columns)], "windows")
    save_table(chain[1].path("ledger.parquet"), nothing, "ledger")
    paths.save_json(chain[0].path("roots.json"), {CORPUS: ""})


def check_imported(run: str) -> None:
    """Raise ValueError saying what to do first when no pickles were imported for a run."""
    try:
        stages.find_stage("03_embed", run)
    except ValueError as error:
        command = f"python -m lib.corpora.authors FOLDER --run {run}"
        raise ValueError(f"run '{run}' starts from imported pickles: {command}") from error


def main() -> int:
    """`python -m lib.corpora.authors FOLDER --run NAME`: import every *.pkl and *.pickle of a folder."""
    parser = argparse.ArgumentParser(prog="python -m lib.corpora.authors", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="folder of the authors' pickles")
    parser.add_argument("--run", default="authors", help="name of the run that they become")
    options = parser.parse_args()
    files = [path for path in options.folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".p")]
    try:
        print(", ".join(f"{value} {name}" for name, value in import_pickles(files, options.run).items()))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
