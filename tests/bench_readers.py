"""Time and peak memory of the Common Voice reader: `python tests/bench_readers.py [ROWS ...]`, one process a size.

Makes releases in the 13-column layout (a third of the rows without labels, quotes and odd separators in sentences,
clips as links to one small file) in a temporary folder, and reads each one in a fresh process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HEADER = [
    "client_id", "path", "sentence_id", "sentence", "sentence_domain", "up_votes", "down_votes", "age", "gender",
    "accents", "variant", "locale", "segment",
]  # fmt: skip
AGES = ["", "teens", "twenties", "thirties", "fourties", "fifties", "sixties", "seventies", "eighties", "nineties"]
GENDERS = ["", "male_masculine", "female_feminine", "non-binary", "do_not_wish_to_say"]
SENTENCES = ['She said "no" again.', "Une phrase\u2028coupée", "nan", "A plain sentence of the usual length, no more."]
LINKS_PER_FILE = 50_000  # file systems bound the links to one file


def make_release(folder: Path, rows: int, seed: int = 0) -> None:
    """Write validated.tsv with `rows` rows (and a tenth as many in other.tsv) and their clips."""
    rng = np.random.default_rng(seed)
    clips = folder / "clips"
    clips.mkdir(parents=True)
    speakers = [rng.bytes(64).hex() for _ in range(max(1, rows // 20))]
    age, gender = rng.integers(0, len(AGES), len(speakers)), rng.integers(0, len(GENDERS), len(speakers))
    number = 0
    for name, count in (("validated", rows), ("other", rows // 10)):
        who, blank = rng.integers(0, len(speakers), count), rng.random(count) < 0.33
        with open(folder / f"{name}.tsv", "w", encoding="utf-8", newline="\n") as stream:
            stream.write("\t".join(HEADER) + "\n")
            for k, is_blank in zip(who, blank):
                clip = f"common_voice_en_{number}.mp3"
                labels = ["", ""] if is_blank else [AGES[age[k]], GENDERS[gender[k]]]
                sentence = SENTENCES[number % len(SENTENCES)]
                stream.write(
                    "\t".join([speakers[k], clip, f"{number:064x}", sentence, "", "2", "0", *labels, "", "", "en", ""])
                )
                stream.write("\n")
                if number % LINKS_PER_FILE == 0:
                    (clips / clip).write_bytes(b"ID3")
                    first = clips / clip
                else:
                    os.link(first, clips / clip)
                number += 1


def measure(folder: Path) -> dict[str, float]:
    """Read the release and return rows, seconds and memory of this process."""
    from lib.corpora.common_voice import read_common_voice
    from lib.stages import peak_memory_mb

    before = peak_memory_mb()
    start, busy = time.perf_counter(), time.process_time()
    clips, ledger = read_common_voice(folder)
    seconds, cpu = time.perf_counter() - start, time.process_time() - busy
    if clips.attrs["rows_in"] != len(clips) + len(ledger):
        raise RuntimeError("rows in are not rows out and ledger")
    return {"rows": clips.attrs["rows_in"], "clips": len(clips), "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2),
            "start_mb": before, "peak_mb": peak_memory_mb()}  # fmt: skip


def main() -> None:
    """Make and measure each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--read", type=Path, help="only read this folder and print one line of JSON")
    options = parser.parse_args()
    if options.read:
        print(json.dumps(measure(options.read)))
        return
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "cv-corpus-25.0-2026-03-09" / "en"
            make_release(folder, rows)
            call = [sys.executable, __file__, "--read", str(folder)]
            print(subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
