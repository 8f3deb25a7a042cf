"""Killed anywhere, nothing lost: `python tests/bench_kills.py [--kills 30] [--seed 0]`, half an hour on two cores.

Runs the demo at reduced size once undisturbed; then again and again in another folder, where SIGKILL hits the run and its
kernels at random moments and the next attempt goes on with what is there. Every run that ends so must hold the scores, the
splits and the ledgers of the undisturbed one. Last, on a disk that is too small (a tmpfs, where this process may mount one)
and is then given room. Prints one line of JSON; exits with 1 when anything differs.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import psutil
from chain_runner import run_chain, start_chain

TABLES = ["01_download-*/ledger", "02_segment-*/ledger", "02_segment-*/windows", "04_train-*/splits"]
TABLES += ["05_evaluate-*/predictions"]


def finish(folders: Path) -> dict:
    """Run to the end; what came of it."""
    done = run_chain(folders)
    assert done.returncode == 0, done.stderr[-3000:]
    return results_of(folders)


def results_of(folders: Path) -> dict:
    """What must be equal: the scores that are reported, and the tables that they come from."""
    found = {
        "scores": json.loads((folders / "reports" / "demo" / "metrics.json").read_text(encoding="utf-8"))["scores"]
    }
    for name in TABLES:
        (path,) = (folders / "data" / "demo").glob(f"{name}.parquet")
        found[name] = pd.read_parquet(path).to_csv(index=False)
    return found


def kill(process: subprocess.Popen) -> str:
    """SIGKILL the run and all that it started; the notebook that it was in."""
    running = psutil.Process(process.pid)
    for one in [running, *running.children(recursive=True)]:
        if one.is_running():
            one.kill()
    _, told = process.communicate()
    return told.rpartition("notebook, ")[2].partition("]")[0] or "before the first notebook"


def disturb(folders: Path, wanted: dict, seconds: float, kills: int, draw: random.Random) -> dict:
    """Kill at random moments until there were `kills`; compare every run that came to its end between them."""
    places, ended, differing = Counter(), 0, 0
    while (left := kills - places.total()) or ended == 0 or (folders / "data").exists():
        process = start_chain(folders)
        try:
            process.wait(timeout=draw.uniform(0.5, seconds) if left else None)
        except subprocess.TimeoutExpired:
            places[kill(process)] += 1
            told = f"killed {places.total()} times, {ended} runs ended, {differing} of them differ"
            print(told, file=sys.stderr, flush=True)
            continue
        _, told = process.communicate()
        assert process.returncode == 0, told[-3000:]
        ended += 1
        differing += results_of(folders) != wanted
        shutil.rmtree(folders)
        folders.mkdir()
    return {"kills": places.total(), "killed in": dict(places), "runs ended": ended, "differing": differing}


def fill_disk(folders: Path, wanted: dict, size: int) -> dict:
    """Run on a disk of half the size that the data take, then give it room."""
    disk = folders / "data"
    disk.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size // 2}", "tmpfs", disk]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        return {"full disk": f"not tried: {mounted.stderr.strip()}"}
    try:
        refused = run_chain(folders)
        lines = [line.strip() for line in refused.stderr.splitlines() if "No space left" in line]
        subprocess.run(["mount", "-o", f"remount,size={4 * size}", disk], check=True)
        told = {"full disk": (lines or [refused.stderr[-300:]])[-1], "exit": refused.returncode}
        return told | {"equal after": finish(folders) == wanted}
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


def main() -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        calm, disturbed, small = (Path(scratch, name) for name in ("calm", "disturbed", "small"))
        calm.mkdir()
        disturbed.mkdir()
        started, wanted = time.monotonic(), finish(calm)
        seconds = time.monotonic() - started
        size = sum(path.stat().st_size for path in (calm / "data").rglob("*") if path.is_file())
        told = {"undisturbed s": round(seconds, 1), "MB": round(size / 1e6, 1)}
        told |= disturb(disturbed, wanted, seconds, options.kills, random.Random(options.seed))
        told |= fill_disk(small, wanted, size)
    print(json.dumps(told))
    return int(bool(told["differing"]) or not told.get("equal after", True))


if __name__ == "__main__":
    sys.exit(main())
