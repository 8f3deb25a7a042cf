"""Killed anywhere, nothing lost: `python tests/bench_kills.py [KILLS]`, half an hour on two cores for the usual 30.

Runs the demo at reduced size once undisturbed; then again and again in another folder, where SIGKILL hits the run and its
kernels at random moments and the next attempt goes on with what is there. Every run that ends so must hold the scores, the
splits and the ledgers of the undisturbed one. Last, on a disk that is too small (a tmpfs, where this process may mount one)
and is then given room. Prints one line of JSON; exits with 1 when anything differs.
"""

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
from chain_runner import kill_all, run_chain, start_chain

TABLES = ["01_download-*/ledger", "02_segment-*/ledger", "02_segment-*/windows", "04_train-*/splits"]
TABLES += ["05_evaluate-*/predictions"]


def finish(folders: Path, process: subprocess.Popen | None = None) -> dict:
    """Run to the end; what must be equal: the scores that are reported, and the tables that they come from."""
    process = process or start_chain(folders)
    _, told = process.communicate()
    assert process.returncode == 0, told[-3000:]
    files = [next((folders / "data/demo").glob(f"{name}.parquet")) for name in TABLES]
    scores = json.loads((folders / "reports/demo/metrics.json").read_text(encoding="utf-8"))["scores"]
    return {"scores": scores} | {name: pd.read_parquet(path).to_csv(index=False) for name, path in zip(TABLES, files)}


def disturb(folders: Path, wanted: dict, seconds: float, kills: int) -> dict:
    """Kill at random moments until there were `kills`; compare every run that came to its end between them."""
    draw, places, ended, differing = random.Random(0), Counter(), 0, 0
    while (left := kills - places.total()) or ended == 0 or (folders / "data").exists():
        process = start_chain(folders)
        try:
            process.wait(timeout=draw.uniform(0.5, seconds) if left else None)
        except subprocess.TimeoutExpired:
            told = kill_all(process).rpartition("notebook, ")[2].partition("]")[0]
            places[told or "before the first notebook"] += 1
            continue
        differing, ended = differing + (finish(folders, process) != wanted), ended + 1
        shutil.rmtree(folders)
        print(f"killed {places.total()} times, {ended} runs ended, {differing} of them differ", file=sys.stderr)
    return {"kills": places.total(), "killed in": dict(places), "runs ended": ended, "differing": differing}


def fill_disk(folders: Path, wanted: dict, size: int) -> dict:
    """Run on a disk of half the size that the data take, then give it room."""
    disk = folders / "data"
    disk.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size // 2}", "tmpfs", disk]).returncode:
        return {"full disk": "not tried"}
    try:
        refused = run_chain(folders)
        subprocess.run(["mount", "-o", f"remount,size={4 * size}", disk], check=True)
        told = [line.strip() for line in refused.stderr.splitlines() if "No space left" in line]
        return {"full disk": told or refused.stderr[-300:], "differing after": int(finish(folders) != wanted)}
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        calm, disturbed, small = (Path(scratch, name) for name in ("calm", "disturbed", "small"))
        started, wanted = time.monotonic(), finish(calm)
        seconds = time.monotonic() - started
        size = sum(path.stat().st_size for path in (calm / "data").rglob("*") if path.is_file())
        told = disturb(disturbed, wanted, seconds, int([*sys.argv, 30][1])) | fill_disk(small, wanted, size)
    print(json.dumps({"undisturbed s": round(seconds, 1), "MB": round(size / 1e6, 1)} | told))
    sys.exit(int(bool(told["differing"] or told.get("differing after"))))
