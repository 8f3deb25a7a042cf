"""The authors' published pickles, read without unpickling: tensors, strings, numbers and containers, nothing else.

The paper's embeddings come as pickled lists of sets {tensor[1, 149, 32], age word, gender word} (github.com/Orya-s/
DeepLearningSound). A pickle is a program, and Python's own reader runs it. Here its instructions are interpreted by a
machine that knows only how to put values into containers; the one thing it can build is a tensor from bytes in the file.

    python -m lib.corpora.authors FOLDER        then: make reports RUN=authors

There is no sound in them: baselines that listen, sounds of errors, model folders and 06_predict are left out, and said so.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import pickletools
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from tqdm import tqdm

from lib import paths, stages, tables
from lib.corpora.labels import ages_of, genders_of, is_known_age, is_known_gender
from lib.store import finish_store, save_shard

CORPUS = "pickles"
IMPORTED = "as published"  # the encoder of such a store: none that could be asked about new recordings
BIGGEST = 200_000_000  # bytes of a file; the published ones are of 1 to 2 MB
MOST = 3  # parts of an entry
VALUES = 10_000_000  # most numbers in one tensor
INSTRUCTIONS = (
    1_000_000  # of a file at most, each of which may make a container; the published ones have some thousands
)
STORAGES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2"}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # of torch.save's format before 1.6, which a pickled tensor's bytes are in
MARK = object()


class UnsafePickle(ValueError):
    """A pickle that asks for more than tensors, strings, numbers and containers, or that is broken."""


@dataclass(frozen=True)
class Name:
    """A name that the pickle asks for, such as "os.system": only ever compared with those that are allowed."""

    text: str


@dataclass(frozen=True, eq=False)
class Tensor:
    """An array that the pickle built."""

    values: np.ndarray


# ---------------------------------------------------------------------------------------------------------- the machine


class Machine:
    """Interprets one pickle from a stream. Sets come as lists, since what is in them need not be hashable.

    `builders` maps the names that may be called to functions; `persistent` answers what torch.save stores outside.
    """

    def __init__(self, builders: dict[str, Callable[..., Any]], persistent: Callable[[Any], Any] | None = None):
        self.builders, self.persistent = builders, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def load(self, stream: BinaryIO) -> Any:
        """The object that the pickle at the stream's position describes; UnsafePickle for anything else."""
        for count, (opcode, argument, position) in enumerate(pickletools.genops(stream)):
            if count >= INSTRUCTIONS:
                raise UnsafePickle(f"more than {INSTRUCTIONS:,} instructions")
            if opcode.name == "STOP":
                return self.stack.pop()
            step = STEPS.get(opcode.name)
            if step is None:
                raise UnsafePickle(f"instruction {opcode.name} at byte {position} is not allowed")
            step(self, argument)
        raise UnsafePickle("the pickle does not end")

    def pop_to_mark(self) -> list[Any]:
        """Everything above the last mark, which goes too."""
        place = len(self.stack) - 1
        while self.stack[place] is not MARK:
            place -= 1
            if place < 0:
                raise UnsafePickle("an end without its beginning")
        found = self.stack[place + 1 :]
        del self.stack[place:]
        return found

    def extend(self, items: list[Any], kind: type) -> None:
        """Add items to the container on top of the stack."""
        if not isinstance(self.stack[-1], kind):
            raise UnsafePickle(f"items for a {type(self.stack[-1]).__name__}, which holds none")
        if kind is list:
            self.stack[-1].extend(items)
        else:
            self.stack[-1].update({key: value for key, value in zip(items[::2], items[1::2]) if _is_plain(key)})

    def name(self, module: Any, attribute: Any) -> None:
        """Put a name on the stack, if it is one of those that may be called or that name a type of storage."""
        if not isinstance(module, str) or not isinstance(attribute, str):  # printing anything else could take for ever
            raise UnsafePickle("it asks for a name that is no text")
        text = f"{module}.{attribute}"
        if text not in self.builders and text not in {f"torch.{kind}" for kind in STORAGES}:
            raise UnsafePickle(f"it asks for {text[:80]!r}")
        self.stack.append(Name(text))

    def call(self) -> None:
        """REDUCE: build with one of the functions that are allowed."""
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, Name) or called.text not in self.builders or not isinstance(arguments, tuple):
            raise UnsafePickle("it calls what is no function that is allowed")
        self.stack.append(self.builders[called.text](*arguments))

    def recall(self, place: int) -> None:
        """Put a remembered object on the stack."""
        if place not in self.memo:
            raise UnsafePickle(f"it recalls object {place}, which it never made")
        self.stack.append(self.memo[place])

    def persist(self) -> None:
        """BINPERSID: what torch.save keeps outside the pickle."""
        if self.persistent is None:
            raise UnsafePickle("it refers to something outside itself")
        self.stack.append(self.persistent(self.stack.pop()))


def _is_plain(key: Any) -> bool:
    """Whether a key is text: numbers could be chosen so that all fall in one place of a dictionary."""
    if type(key) is str:
        return True
    raise UnsafePickle(f"a key of type {type(key).__name__}")


def _make_steps() -> dict[str, Callable[[Machine, Any], Any]]:
    """What each instruction that is allowed does to the stack."""
    push = lambda machine, value: machine.stack.append(value)  # noqa: E731
    steps: dict[str, Callable[[Machine, Any], Any]] = {name: push for name in VALUE_STEPS}
    steps |= dict.fromkeys(["PROTO", "FRAME"], lambda machine, _: None)
    steps |= {
        "MARK": lambda m, _: m.stack.append(MARK),
        "NONE": lambda m, _: m.stack.append(None),
        "NEWTRUE": lambda m, _: m.stack.append(True),
        "NEWFALSE": lambda m, _: m.stack.append(False),
        "EMPTY_LIST": lambda m, _: m.stack.append([]),
        "EMPTY_SET": lambda m, _: m.stack.append([]),
        "EMPTY_DICT": lambda m, _: m.stack.append({}),
        "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
        "LIST": lambda m, _: m.stack.append(m.pop_to_mark()),
        "FROZENSET": lambda m, _: m.stack.append(m.pop_to_mark()),
        "TUPLE": lambda m, _: m.stack.append(tuple(m.pop_to_mark())),
        "TUPLE1": lambda m, _: m.stack.append((m.stack.pop(),)),
        "TUPLE2": lambda m, _: m.stack.append(tuple(m.stack.pop() for _ in range(2))[::-1]),
        "TUPLE3": lambda m, _: m.stack.append(tuple(m.stack.pop() for _ in range(3))[::-1]),
        "APPEND": lambda m, _: m.extend([m.stack.pop()], list),
        "APPENDS": lambda m, _: m.extend(m.pop_to_mark(), list),
        "ADDITEMS": lambda m, _: m.extend(m.pop_to_mark(), list),
        "DICT": lambda m, _: (lambda items: (m.stack.append({}), m.extend(items, dict)))(m.pop_to_mark()),
        "SETITEM": lambda m, _: m.extend([m.stack.pop(), m.stack.pop()][::-1], dict),
        "SETITEMS": lambda m, _: m.extend(m.pop_to_mark(), dict),
        "MEMOIZE": lambda m, _: m.memo.__setitem__(len(m.memo), m.stack[-1]),
        "GLOBAL": lambda m, text: m.name(*text.split(" ", 1)),
        "STACK_GLOBAL": lambda m, _: m.name(*[m.stack.pop(), m.stack.pop()][::-1]),
        "REDUCE": lambda m, _: m.call(),
        "BINPERSID": lambda m, _: m.persist(),
    }
    steps |= dict.fromkeys(["PUT", "BINPUT", "LONG_BINPUT"], lambda m, place: m.memo.__setitem__(place, m.stack[-1]))
    return steps | dict.fromkeys(["GET", "BINGET", "LONG_BINGET"], lambda m, place: m.recall(place))


VALUE_STEPS = ["INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"]
VALUE_STEPS += ["UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"]
VALUE_STEPS += ["BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"]
STEPS = _make_steps()


# -------------------------------------------------------------------------------------------------- tensors from bytes


class Budget:
    """Bytes that a file may still build, so that a small one cannot fill the memory."""

    def __init__(self, size: int):
        self.left = size

    def spend(self, size: int) -> None:
        """Count `size` bytes; UnsafePickle when the file asks for more than it holds."""
        self.left -= size
        if self.left < 0:
            raise UnsafePickle("it asks for more than it holds")


def read_pickle(content: bytes) -> Any:
    """The object in a pickle made of tensors, strings, numbers and containers; UnsafePickle for anything else."""
    if content[:4] == b"PK\x03\x04":
        raise UnsafePickle("a zip archive, as torch.save writes, and no pickle")
    storages, texts, sets = (Budget(len(content)) for _ in range(3))
    tensors = Budget(2 * len(content))  # float16 becomes float32
    builders = {
        "torch._utils._rebuild_tensor_v2": lambda *arguments: _build_tensor(tensors, *arguments),
        "torch.storage._load_from_bytes": lambda stored: _read_storage(storages, stored),
        "_codecs.encode": lambda text, encoding: _encode_latin(texts, text, encoding),
        "collections.OrderedDict": _build_empty,
        **dict.fromkeys(
            ["builtins.set", "__builtin__.set", "builtins.frozenset"], lambda *items: _build_set(sets, *items)
        ),
    }
    try:
        return Machine(builders).load(io.BytesIO(content))
    except UnsafePickle:
        raise
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        EOFError,
        RecursionError,
        struct.error,
    ) as error:
        raise UnsafePickle(f"broken: {error or type(error).__name__}") from error


def _build_empty(*arguments: Any) -> list[Any]:
    if arguments not in [(), ([],)]:
        raise UnsafePickle("a tensor with hooks")
    return []


def _build_set(budget: Budget, items: Any = ()) -> list[Any]:
    if not isinstance(items, list | tuple):
        raise UnsafePickle(f"a set of a {type(items).__name__}")
    budget.spend(len(items))
    return list(items)


def _encode_latin(budget: Budget, text: Any, encoding: Any) -> bytes:
    """How protocols 0 to 2 write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise UnsafePickle("bytes that are no text in latin1")
    budget.spend(len(text))
    return text.encode("latin1")


def _build_tensor(budget: Budget, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """A tensor over a storage, as torch._utils._rebuild_tensor_v2 does it, with every number checked."""
    numbers = [offset, *size, *stride]
    if not isinstance(storage, np.ndarray) or len(size) != len(stride) or len(size) > 8:
        raise UnsafePickle("a tensor without storage or shape")
    if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
        raise UnsafePickle("a tensor whose shape is not made of whole numbers")
    if math.prod(size) > VALUES:
        raise UnsafePickle(f"a tensor of shape {list(size)}, stride {list(stride)}, offset {offset}")
    budget.spend(4 * math.prod(size))
    last = offset + sum((length - 1) * step for length, step in zip(size, stride))
    if math.prod(size) and last >= len(storage):
        raise UnsafePickle(f"a tensor that reaches beyond its {len(storage)} numbers")
    if not math.prod(size):
        return Tensor(np.zeros(size, np.float32))
    steps = [step * storage.itemsize for step in stride]
    return Tensor(np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False).astype(np.float32))


def _read_storage(budget: Budget, content: Any) -> np.ndarray:
    """The numbers in what torch.save's old format makes of one storage: four pickles, a list of keys, then the bytes."""
    if not isinstance(content, bytes | bytearray):
        raise UnsafePickle("a storage that is not made of bytes")
    budget.spend(len(content))
    stream = io.BytesIO(content)
    magic, protocol, system = (Machine({}).load(stream) for _ in range(3))
    if magic != LEGACY_MAGIC or protocol != 1001 or not isinstance(system, dict) or not system.get("little_endian"):
        raise UnsafePickle("a storage that torch.save has not written")
    kind, key, count = Machine({}, _describe_storage).load(stream)
    if Machine({}).load(stream) != [key]:
        raise UnsafePickle("a storage with other keys than its own")
    (stored,) = struct.unpack("<q", stream.read(8))
    values = stream.read()
    if stored != count or len(values) != count * np.dtype(kind).itemsize:
        raise UnsafePickle(f"a storage of {len(values)} bytes for {count} numbers")
    return np.frombuffer(values, kind)


def _describe_storage(reference: Any) -> tuple[str, str, int]:
    """Type, key and length out of ("storage", type, key, device, length, view)."""
    if not isinstance(reference, tuple) or len(reference) < 5 or reference[0] != "storage":
        raise UnsafePickle("it refers to what is no storage")
    _, kind, key, _, count, *view = reference
    name = kind.text.removeprefix("torch.") if isinstance(kind, Name) else ""
    if name not in STORAGES or not isinstance(key, str) or type(count) is not int or view not in ([], [None]):
        raise UnsafePickle(f"a storage of type {name or type(kind).__name__}; known are {list(STORAGES)}")
    return STORAGES[name], key, count


# ----------------------------------------------------------------------------------------------------- into the chain


@dataclass(frozen=True)
class Item:
    """One stored window: frames [T, D] and the two words that stood beside it ("" = none)."""

    frames: np.ndarray
    age: str
    gender: str


def read_items(path: Path) -> Iterator[tuple[int, Item | str]]:
    """Yield (number, item) for every entry of one file, or (number, reason) for one that cannot be used.

    Raises UnsafePickle naming the file when the file as a whole is none of the authors' kind.
    """
    path = Path(path)
    if path.stat().st_size > BIGGEST:
        raise UnsafePickle(f"{path}: {path.stat().st_size} bytes, at most {BIGGEST} are read")
    try:
        found = read_pickle(path.read_bytes())
        if not isinstance(found, list):
            raise UnsafePickle(f"a {type(found).__name__} and no list of sets")
    except UnsafePickle as error:
        raise UnsafePickle(f"{path}: {error}; it is not read") from error
    seen: set[int] = set()
    for number, entry in enumerate(found):
        parts = (
            {id(part) for part in entry[:MOST] if isinstance(part, Tensor)}
            if isinstance(entry, list | tuple)
            else set()
        )
        yield number, "the same tensor again" if parts & seen else _read_entry(entry)
        seen |= parts


def _is_short(part: Any) -> bool:
    """Whether it is a whole number that may be an age; Python refuses to print those of thousands of digits."""
    return type(part) is int and abs(part) < 1000


def _read_entry(entry: Any) -> Item | str:
    if not isinstance(entry, list | tuple):
        return "no set"
    if len(entry) > MOST:
        return "not one tensor and words"
    tensors = [part for part in entry if isinstance(part, Tensor)]
    words = [str(part).strip() for part in entry if isinstance(part, str) or _is_short(part)]
    if len(tensors) != 1 or len(tensors) + len(words) != len(entry):
        return "not one tensor and words"
    frames = tensors[0].values
    frames = frames[0] if frames.ndim == 3 and len(frames) == 1 else frames
    if frames.ndim != 2 or not frames.size:
        return f"tensor of shape {list(tensors[0].values.shape)}"
    if not np.isfinite(frames).all():
        return "values that are no numbers"
    genders = [word for word in words if word and is_known_gender(word)]
    ages = [word for word in words if word and word not in genders and is_known_age(word, "decade")]
    strange = [word for word in words if word and word not in genders + ages]
    if strange or len(genders) > 1 or len(ages) > 1:
        return f"words that are no age and gender: {', '.join(words)[:80]}"
    return Item(frames, (ages or [""])[0], (genders or [""])[0])


def import_pickles(files: Iterable[Path], run: str, shard_items: int = 512) -> dict[str, int]:
    """Turn the authors' pickles into the finished stages 01 to 03 of `run`, so that 04_train can go on; return counts.

    Who speaks is not in these files. Entries of one file count as one speaker and one recording, since neighbours were
    cut from neighbouring audio; a person may still be in several files, so "unseen speaker" cannot be promised. The store
    holds `frames` and their time average as the one layer, with no sound there is nothing else.
    """
    files = sorted(Path(file) for file in files)
    if len({file.name for file in files}) < len(files) or not files:
        raise ValueError(f"{len(files)} files, some of the same name: give at least one, and each name once")
    found = [stages.open_stage("01_download", run, {"pickles": [stages.file_checksum(file) for file in files]}, 1)]
    found.append(stages.open_stage("02_segment", run, {"window_s": 3.0, "step_s": 2.0}, 1, found[:1]))
    found.append(stages.open_stage("03_embed", run, {"encoder": IMPORTED, "feature": "emission"}, 1, found[:2]))
    rows, dropped, shards, waiting = [], [], 0, []
    known: set[bytes] = set()  # hashes of what was kept: equal windows in two files could land on both sides of a split
    for file in tqdm(files, desc="reading pickles", unit="file"):
        for number, item in read_items(file):
            clip_id = f"{CORPUS}:{file.name}#{number}"
            content = b"" if isinstance(item, str) else hashlib.sha256(item.frames.tobytes()).digest()
            item = "the same values again" if content in known else item
            shape = rows[0]["shape"] if rows else getattr(getattr(item, "frames", None), "shape", None)
            if isinstance(item, str) or item.frames.shape != shape:
                reason = item if isinstance(item, str) else f"tensor of shape {list(item.frames.shape)}"
                dropped.append({"corpus": CORPUS, "item": clip_id, "reason": reason.split(":")[0], "detail": reason})
                continue
            known.add(content)
            rows.append({"clip_id": clip_id, "file": file.name, "shape": shape, "age": item.age, "gender": item.gender})
            waiting.append((clip_id, item.frames))
            if len(waiting) == shard_items:
                shards = _save(found[2].folder, shards, waiting)
    if not rows:
        raise ValueError(f"none of {len(dropped)} entries can be used, e.g. {dropped[:1]}")
    finish_store(found[2].folder, _save(found[2].folder, shards, waiting), {"encoder": IMPORTED})
    counts = {"files": len(files), "windows": len(rows), "dropped": len(dropped)}
    _save_tables(found, rows, dropped)
    for stage in found:
        stages.finish_stage(stage, counts)
    note = "embeddings as the paper's authors published them: no sound, no speakers' names, a file counts as a speaker"
    encoder = {"name": "WAV2VEC2_ASR_BASE_960H", "note": note, "weights_sha256": ""}
    checksum = stages.fingerprint_of(found[0].parameters["pickles"])
    stages.note_run(run, encoder=encoder, corpora=[CORPUS], data_checksum=checksum, confounds=[])
    return counts


def check_imported(run: str) -> None:
    """Raise ValueError saying what to do first when no pickles were imported for a run."""
    try:
        stages.find_stage("03_embed", run)
    except ValueError as error:
        raise ValueError(
            f"run '{run}' starts from imported pickles: python -m lib.corpora.authors FOLDER --run {run}"
        ) from error


def _save(folder: Path, shards: int, waiting: list[tuple[str, np.ndarray]]) -> int:
    """Write what waits as one shard, empty the list, and return the number of shards now."""
    if not waiting:
        return shards
    frames = np.stack([frames for _, frames in waiting]).astype(np.float32)
    tensors = {"frames": frames, "layers": frames.mean(axis=1)[:, None]}
    save_shard(folder, shards, [f"{clip_id}@0" for clip_id, _ in waiting], tensors, "pickles")
    waiting.clear()
    return shards + 1


def _save_tables(found: list[stages.Stage], rows: list[dict[str, Any]], dropped: list[dict[str, str]]) -> None:
    table = pd.DataFrame(rows)
    speaker = CORPUS + ":" + table["file"]
    ages = ages_of(table["age"], "decade")
    clips = table[["clip_id"]].assign(
        corpus=CORPUS, speaker_id=speaker, recording_id=speaker, language="", path=table["file"], start_s=0.0,
        end_s=np.nan, gender=genders_of(table["gender"]), gender_raw=table["gender"], age_years=np.nan,
        age_decade=ages["age_decade"], age_raw=table["age"], official_split=None,
    )  # fmt: skip
    windows = table[["clip_id"]].assign(
        window_id=table["clip_id"] + "@0", speaker_id=speaker, start_s=0.0, duration_s=3.0, speech_ratio=np.nan,
        level_db=np.nan, content_hash=table["clip_id"],
    )[list(tables.WINDOWS.columns)]  # fmt: skip
    ledger = pd.DataFrame(dropped) if dropped else tables.empty_table("ledger")
    tables.save_table(found[0].path("clips.parquet"), clips, "clips")
    tables.save_table(found[0].path("ledger.parquet"), ledger, "ledger")
    tables.save_table(found[1].path("windows.parquet"), windows, "windows")
    tables.save_table(found[1].path("ledger.parquet"), tables.empty_table("ledger"), "ledger")
    paths.save_json(found[0].path("roots.json"), {CORPUS: ""})


def main() -> int:
    """`python -m lib.corpora.authors FOLDER --run NAME`: import every *.pkl and *.pickle of a folder."""
    parser = argparse.ArgumentParser(prog="python -m lib.corpora.authors", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the authors' pickles")
    parser.add_argument("--run", default="authors", help="name of the run that they become")
    asked = parser.parse_args()
    files = [path for path in asked.folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".p")]
    try:
        counts = import_pickles(files, asked.run)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(", ".join(f"{value} {name}" for name, value in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
