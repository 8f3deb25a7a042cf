"""A synthetic VoxCeleb1: meta table, hand-made ages, frame files, and one long recording a video, with their sores.

Form of the files: robots.ox.ac.uk/~vgg/data/voxceleb. A frame file names frames at 25 a second; a cut runs from the
first frame's time to the last one's.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lib.corpora.demo.recording import make_music, make_noise, record, resample, write_audio
from lib.corpora.demo.studio import Session, Sore, Task, count_planted, open_session
from lib.paths import write_whole

FRAMES_PER_S = 25
FIRST_ID = 19_001  # id1xxxx, beyond the real ones (id10001 to id11251)
ALPHABET = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
RECORDINGS = [("ogg", 16_000, 0.5), ("ogg", 24_000, 0.34), ("ogg", 48_000, 0.06), ("opus", 24_000, 0.1)]  # and share
NATIONS = {"en": "USA", "de": "Germany", "fr": "France", "es": "Spain", "it": "Italy"}
SORES = {
    "video never recovered": Sore(2, 2, "no audio"),
    "empty video": Sore(1, 2, "empty file"),
    "garbage instead of a video": Sore(1, 2, "cannot be decoded"),
    "past the end of the video": Sore(1, 2, "shorter than a window"),
    "shorter than 3 s": Sore(2, 1, "shorter than a window"),
    "frame file without frames": Sore(1, 1, "unusable frame file"),
    "silent cut": Sore(1, 1, ""),
}
LOST_VIDEOS = ["video never recovered", "empty video", "garbage instead of a video"]  # of two cuts each
UNLABELLED = ({"age": ""},)  # a speaker whom nobody gave an age
WITHOUT_DATA = 3  # speakers in the meta table of whom there is nothing else
GARBAGE = b"this is not an audio file\n" * 40


def speaker_name(number: int) -> str:
    """VoxCeleb id of a speaker's number."""
    return f"id{FIRST_ID + number}"


def render_voxceleb_speaker(task: Task) -> dict[str, Any]:
    """Record one speaker's videos and write their frame files; return counts, meta row, age and what was planted."""
    speaker, cuts = task.speaker, _share_cuts(max(2, round(0.75 * task.clips)), task)
    with open_session(task) as session:
        inside = [sore for sore in task.sores if sore not in LOST_VIDEOS]
        for k, count in enumerate(cuts):
            _record_video(task, session, count, inside if k == 0 else [])
        for sore in task.sores:
            if sore in LOST_VIDEOS:
                _lose_video(task, session.rng, sore)
    return {
        "speaker": speaker_name(speaker.number),
        "gender": speaker.gender[0],
        "nation": NATIONS[speaker.language],
        "age": task.labels.get("age", str(speaker.age_years // 10 * 10)),
        "videos": len(cuts),
        "cuts": sum(cuts),
        "planted": list(task.sores),
    }


def _share_cuts(cuts: int, task: Task) -> list[int]:
    """Share `cuts` out over one to three videos."""
    videos = int(min(cuts, np.random.default_rng([task.seed, 5, task.speaker.number]).integers(1, 4)))
    return [len(part) for part in np.array_split(np.arange(cuts), videos)]


def _record_video(task: Task, session: Session, count: int, sores: list[str]) -> None:
    """Write one video's sound with `count` cuts in it, and the frame files of those and of the planted sores."""
    rng, name = session.rng, _draw_video(session.rng)
    timeline, cuts = [_fill(session)], []
    for kind in [""] * count + [sore for sore in sores if sore == "shorter than 3 s"]:
        sound = session.pad(session.say(session.write_sentence()), 0.05, 0.3)
        if not kind and rng.random() < 0.4:
            sound = np.concatenate([sound, session.pad(session.say(session.write_sentence()), 0.05, 0.3)])
        if kind:
            sound = sound[: int(rng.uniform(1.2, 2.6) * session.rate_hz)]
        while not kind and len(sound) < 3.96 * session.rate_hz:  # the shortest cut of VoxCeleb
            sound = np.concatenate([sound, session.pad(session.say(session.write_sentence()), 0.05, 0.3)])
        cuts.append(_place(timeline, sound, session.rate_hz))
        timeline.append(_fill(session))
    sound = record(np.concatenate(timeline), session.rate_hz, task.speaker, rng)
    if "silent cut" in sores:
        first = int(np.ceil(FRAMES_PER_S * len(sound) / session.rate_hz))
        sound = np.concatenate([sound, np.zeros(6 * session.rate_hz, np.float32)])
        cuts.append((first + 5, first + 130))
    cuts += _past_end(len(sound) / session.rate_hz, sores)
    codec, rate_hz, _ = RECORDINGS[rng.choice(len(RECORDINGS), p=[share for *_, share in RECORDINGS])]
    path = Path(task.folder) / "voxceleb" / "audio" / f"{name}.{codec}"
    write_audio(path, resample(sound, session.rate_hz, rate_hz), rate_hz, codec, 0.5)
    for number, (first, last) in enumerate(cuts, start=int(rng.integers(1, 4))):
        _write_frames(task, name, number, first, last, rng)
    if "frame file without frames" in sores:
        _write_frames(task, name, 99, 1, 0, rng)


def _past_end(length_s: float, sores: list[str]) -> list[tuple[int, int]]:
    """Cuts that run over the recording's end, or begin after it."""
    end = int(FRAMES_PER_S * length_s)
    cuts = [(end - 60, end + 60), (end + 75, end + 195)]
    return cuts[: 2 * sores.count("past the end of the video")]


def _lose_video(task: Task, rng: np.random.Generator, sore: str) -> None:
    """Frame files of a video whose sound is missing, empty or garbage."""
    name = _draw_video(rng)
    for number, first in enumerate((100, 400), start=1):
        _write_frames(task, name, number, first, first + 130, rng)
    if sore != "video never recovered":
        with write_whole(Path(task.folder) / "voxceleb" / "audio" / f"{name}.ogg") as partial:
            partial.write_bytes(b"" if sore == "empty video" else GARBAGE)


def _draw_video(rng: np.random.Generator) -> str:
    return "".join(rng.choice(ALPHABET, 11))


def _fill(session: Session) -> np.ndarray:
    """What else a video holds [samples]: a pause, noise, music, or somebody else speaking."""
    rng, rate_hz = session.rng, session.rate_hz
    count = int(rng.uniform(1.0, 3.0) * rate_hz)
    kind = rng.integers(4)
    if kind == 0:
        return np.zeros(count, np.float32)
    if kind == 1:
        return 0.3 * make_noise(count, 1.0, rng)
    if kind == 2:
        return 0.7 * make_music(count, rate_hz, rng)
    own = session.speaker.voice
    other = replace(own, f0_hz=110.0 if own.f0_hz > 160 else 210.0, tract_scale=1.0 if own.tract_scale > 1.08 else 1.16)
    return session.pad(0.8 * session.say(session.write_sentence(), other)[:count])


def _place(timeline: list[np.ndarray], sound: np.ndarray, rate_hz: int) -> tuple[int, int]:
    """Append `sound` so that it starts on a frame and return its first and last frame."""
    frame = rate_hz // FRAMES_PER_S
    position = sum(len(piece) for piece in timeline)
    first = -(-position // frame)
    timeline += [np.zeros(first * frame - position, np.float32), sound]
    return first, first + len(sound) // frame


def _write_frames(task: Task, video: str, number: int, first: int, last: int, rng: np.random.Generator) -> None:
    """Write one frame file, byte for byte in the form of the real ones; last < first = no frames."""
    name = speaker_name(task.speaker.number)
    scores = f"FV Conf   : \t{rng.uniform(11, 26):.3f}\nASD Conf  : \t{rng.uniform(4.2, 9.8):.3f}\n"
    head = f"Identity  : \t{name}\nReference : \t{video}\nOffset    : \t{rng.integers(-3, 3)}\n{scores}\n"
    x, y, w = (int(v) for v in rng.integers(60, 200, 3))
    rows = "".join(f"{frame:06d} \t{x + frame % 3} \t{y} \t{w} \t{w} \n" for frame in range(first, last + 1))
    path = Path(task.folder) / "voxceleb" / "txt" / name / video / f"{number:05d}.txt"
    with write_whole(path) as partial:
        partial.write_text(f"{head}FRAME \tX \tY \tW \tH \n{rows}", encoding="ascii", newline="\n")


def write_voxceleb(folder: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Write the meta table and the ages from the speakers' records; return counts for the manifest."""
    rows = [(r["speaker"], r["gender"], r["nation"]) for r in records]
    last = max(int(name[2:]) for name, *_ in rows)
    rows += [(f"id{last + k}", "mf"[k % 2], "Nowhere") for k in range(1, WITHOUT_DATA + 1)]
    lines = ["VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet"]
    lines += [
        f"{name}\tSynthetic_Speaker_{name[2:]}\t{gender}\t{nation}\t{'test' if k % 8 == 7 else 'dev'}"
        for k, (name, gender, nation) in enumerate(rows)
    ]
    ages = ["speaker,age_decade", *(f"{r['speaker']},{r['age']}" for r in records if r["age"])]
    for name, content in (("vox1_meta.csv", lines), ("ages.csv", ages)):
        with write_whole(folder / "voxceleb" / name) as partial:
            partial.write_text("\n".join(content) + "\n", encoding="utf-8", newline="\n")
    planted, ledger = count_planted(SORES, [kind for r in records for kind in r["planted"]])
    unlabelled = sum(not r["age"] for r in records)
    return {
        "speakers": len(records),
        "videos": sum(r["videos"] for r in records),
        "cuts": sum(r["cuts"] for r in records),
        "frame_files": sum(r["cuts"] for r in records) + sum(planted.values()),
        "planted": planted | {"speaker without data": WITHOUT_DATA, "speaker without age": unlabelled},
        "ledger": ledger,
    }
