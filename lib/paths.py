"""The only module that knows the tree: named folders, and writing so that nothing half-written is ever read."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(os.environ.get("VOICE_ROOT", Path(__file__).resolve().parent.parent))  # the repository
NOTEBOOKS = ROOT / "notebooks"  # 01_download.ipynb ... in reading order
PARAMS = ROOT / "params"  # one YAML a run
ASSETS = Path(__file__).resolve().parent / "assets"  # weights and sentences that ship with the package
TEMPLATES = Path(__file__).resolve().parent / "templates"  # of the report pages
DATA = Path(os.environ.get("VOICE_DATA", ROOT / "data"))  # tables, arrays, corpora: never committed
REPORTS = Path(os.environ.get("VOICE_REPORTS", ROOT / "reports"))  # what a reader opens


def cache_folder() -> Path:
    """Folder for downloaded weights, shared between runs (`VOICE_CACHE`, else `data/cache`)."""
    return Path(os.environ.get("VOICE_CACHE", DATA / "cache"))


def printable(name: str) -> str:
    """A file's name as text that can be stored and shown: bytes that are not UTF-8 become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary neighbour of `path`; rename it to `path` only if the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def save_json(path: Path, content: Any, indent: int | None = 2) -> Path:
    """Write `content` as JSON, whole or not at all; NaN is refused, JSON has none. `indent` None: on one line."""
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    with write_whole(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    return Path(path)


def save_frame(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Write a frame without its index, whole or not at all, as CSV or Parquet by the name's ending; return it."""
    with write_whole(path) as partial:
        (table.to_csv if Path(path).suffix == ".csv" else table.to_parquet)(partial, index=False)
    return table


def load_json(path: Path) -> Any:
    """Read a JSON file, naming the file when it cannot be read as JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); delete it and run its stage again") from error


def replace_folder(new: Path, target: Path) -> None:
    """Put the finished folder `new` where `target` stands; the old one goes only after the new one is in place."""
    retired = target.with_name(f".{target.name}.old")
    shutil.rmtree(retired, ignore_errors=True)
    if target.exists():
        target.rename(retired)
    target.parent.mkdir(parents=True, exist_ok=True)
    new.rename(target)
    shutil.rmtree(retired, ignore_errors=True)
