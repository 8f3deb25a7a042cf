"""Stages that resume: `data/<run>/<stage>-<fingerprint>/` holds what a stage wrote, its name a hash of everything that made
it, `.completed` in it says that all is there; `<stage>.json` beside it points to the folder that the next notebook reads."""

import hashlib
import json
import os
import random
import re
import resource
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lib import paths

COMPLETED = ".completed"


@dataclass
class Stage:
    """One stage of one run. `complete` is True when an earlier run finished the very same work."""

    name: str
    run: str
    fingerprint: str
    folder: Path
    parameters: dict[str, Any]
    complete: bool
    facts: dict[str, Any] = field(default_factory=dict)  # for the run's record: encoder, checksums, confounds
    recomputed: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def path(self, name: str) -> Path:
        """Path of one of the stage's own files."""
        return self.folder / name


def fingerprint_of(*parts: Any) -> str:
    """Hex SHA-256 (first 16 characters) of JSON-able parts; equal parts give equal fingerprints on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def file_checksum(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_files(root: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of each file below `root`, by name, or a text where it cannot be read. One whose size and time of change (ns)
    an earlier call has seen is not read again, until `forget_digests`."""
    cache = paths.cache_folder() / "digests" / f"{fingerprint_of(str(Path(root).absolute()))}.json"
    known = paths.load_json(cache) if cache.exists() else {}
    digests, changed = {}, False
    for name in tqdm(names, desc="comparing sounds", unit="file", delay=2):
        try:
            state = os.stat(Path(root, name))
            seen = [state.st_size, state.st_mtime_ns]
            if known.get(name, [])[:2] != seen:
                known[name], changed = [*seen, file_checksum(Path(root, name))], True
            digests[name] = known[name][2]
        except OSError:
            digests[name] = f"unreadable: {name}"
    if changed:
        paths.save_json(cache, known, indent=None)
    return digests


def forget_digests() -> None:
    """Let the next `digest_files` read every file again."""
    shutil.rmtree(paths.cache_folder() / "digests", ignore_errors=True)


def open_stage(name: str, run: str, parameters: dict[str, Any], version: int, inputs: Iterable[Stage] = ()) -> Stage:
    """Open the folder of these `parameters` (all that changes the result, JSON-able, checksums of weights and data included), of
    the stages `inputs` that this one reads, and of the `version` of the code, raised by hand when its results change. name: the
    notebook's, such as "03_embed"."""
    fingerprint = fingerprint_of(name, version, parameters, [stage.fingerprint for stage in inputs])
    folder = paths.DATA / run / f"{name}-{fingerprint}"
    folder.mkdir(parents=True, exist_ok=True)
    pointer = {"stage": name, "fingerprint": fingerprint, "folder": folder.name, "parameters": parameters}
    paths.save_json(folder.with_name(f"{name}.json"), pointer)
    complete = (folder / COMPLETED).exists()
    facts = paths.load_json(folder / COMPLETED)["facts"] if complete else {}
    return Stage(name, run, fingerprint, folder, parameters, complete, facts)


def find_stage(name: str, run: str) -> Stage:
    """Find the finished stage that the latest run of notebook `name` opened. ValueError when there is none."""
    pointer = paths.DATA / run / f"{name}.json"
    advice = f"run notebooks/{name}.ipynb for run '{run}' first"
    if not pointer.exists():
        raise ValueError(f"stage {name} of run '{run}' was never opened; {advice}")
    found = paths.load_json(pointer)
    folder = pointer.parent / found["folder"]
    if not (folder / COMPLETED).exists():
        raise ValueError(f"{folder}: stage {name} of run '{run}' is not finished; {advice}")
    facts = paths.load_json(folder / COMPLETED)["facts"]
    return Stage(name, run, found["fingerprint"], folder, found["parameters"], True, facts)


def load_roots(downloaded: Stage) -> dict[str, Path]:
    """Where each corpus of a run lies, as 01_download noted it."""
    return {name: Path(folder) for name, folder in paths.load_json(downloaded.path("roots.json")).items()}


def finish_stage(stage: Stage, counts: dict[str, Any] | None = None) -> dict[str, Any]:
    """Mark the stage complete and return the record of what it cost: `made_in_seconds` and `made_with_mb` when the work was
    done, `recomputed` by this very run. `counts`: sizes worth showing (rows, windows)."""
    marker = stage.folder / COMPLETED
    now = {"stage": stage.name, "fingerprint": stage.fingerprint, "recomputed": stage.recomputed}
    now |= {"seconds": round(time.monotonic() - stage.started, 2), "peak_memory_mb": peak_memory_mb()}
    if not stage.complete:
        about = {"parameters": stage.parameters, "facts": stage.facts, "counts": counts or {}}
        paths.save_json(marker, now | about)
        stage.complete = True
    made = paths.load_json(marker)
    record = now | {"counts": made["counts"], "facts": made["facts"]}
    record |= {"made_in_seconds": made["seconds"], "made_with_mb": made["peak_memory_mb"]}
    paths.save_json(paths.DATA / stage.run / "records" / f"{stage.name}.json", record)
    return record


def peak_memory_mb() -> int:
    """Largest resident size of this process so far, in megabytes."""
    status = Path("/proc/self/status")  # getrusage would begin with the size of the process that started this one
    if not status.exists():
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)  # bytes, on macOS
    return int(int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1e3)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and, where it is loaded, torch; on a GPU ask for deterministic algorithms (a processor's are)."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    random.seed(seed)
    np.random.seed(seed)
    if "torch" in sys.modules:  # loading it takes seconds, and a notebook without it draws nothing from it
        torch = sys.modules["torch"]
        torch.manual_seed(seed)
        if torch.cuda.is_available():  # the call alone loads a compiler, five seconds
            torch.use_deterministic_algorithms(True, warn_only=True)
