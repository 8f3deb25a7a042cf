"""Renders the synthetic corpora, and recordings of invented speakers that no stage has seen; one seed draws it all."""

import tempfile
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from lib.corpora.demo import common_voice_layout, voxceleb_layout
from lib.corpora.demo.recording import CLIPS, Session, write_audio, write_text
from lib.corpora.demo.speakers import Speaker, draw_people, draw_speaker
from lib.paths import load_json, save_json

VERSION = 3  # for the folders' names; raise when the same seed gives other recordings
LAYOUTS = {"common_voice": common_voice_layout, "voxceleb": voxceleb_layout}
LEAST_SPEAKERS = 24  # so that each corpus has a speaker for every extra
UNLABELLED_NUMBER, UNSEEN_NUMBER = 5_000, 20_000  # first numbers of speakers without labels, and of no corpus
UNSEEN_FORMATS = [("wav", 44_100, 2), ("flac", 48_000, 1), ("ogg", 24_000, 1), ("mp3", 32_000, 1), ("wav", 8_000, 1)]
FAULTY = ["empty.wav", "notes.wav", "half-second.wav", "two-seconds.wav", "silence.wav", "noise.wav"]


def render_synthetic_corpora(folder: Path, seed: int, speakers: int = 340) -> dict:
    """Write `common_voice/` and `voxceleb/`, half of the speakers each, and some without labels; return the manifest.
    `folder` appears whole, a second call reads. ValueError for too few speakers, and where another rendering is."""
    if speakers < LEAST_SPEAKERS:
        raise ValueError(f"speakers={speakers}: at least {LEAST_SPEAKERS}")

    def write(target: Path) -> dict:
        manifest = {}
        for number, (corpus, layout) in enumerate(LAYOUTS.items()):
            people = draw_people(speakers // 2, seed, first=number * 1_000)
            tasks = [(person, seed, extra, {}) for person, extra in zip_longest(people, layout.EXTRAS, fillvalue="")]
            for k, labels in enumerate(layout.UNLABELLED):
                tasks.append((draw_speaker(UNLABELLED_NUMBER + k, "male", 34, seed), seed, "", labels))
            rows = _record_all(layout.record_speaker, target / corpus, tasks, f"synthetic {corpus}")
            planted = dict.fromkeys(layout.FAULTS, 1)
            manifest[corpus] = {"rows": layout.write_tables(target / corpus, rows), "ledger": planted}
        return manifest

    return _write_folder(folder, {"seed": seed, "speakers": speakers, "clips_per_speaker": CLIPS}, write)


def render_unseen(folder: Path, seed: int, count: int) -> dict:
    """Write `count` recordings of as many new invented speakers, the `FAULTY` files, and `labels.csv`; likewise."""

    def write(target: Path) -> dict:
        tasks = [(person, seed) for person in draw_people(count, seed, UNSEEN_NUMBER)]
        lines = _record_all(_record_unseen, target / "recordings", tasks, "unseen speakers")
        lines += _write_faulty(target / "recordings", draw_speaker(UNSEEN_NUMBER - 1, "female", 31, seed), seed)
        write_text(target / "labels.csv", ["path,speaker,gender,age", *(f"recordings/{line}" for line in lines)])
        return {"recordings": count, "faulty": FAULTY}

    return _write_folder(folder, {"seed": seed, "count": count}, write)


def _record_all(record: Callable[..., list], folder: Path, tasks: list[tuple], label: str) -> list:
    """What `record` gives for all tasks, in order, on all cores."""
    parts = Parallel(n_jobs=-1, return_as="generator")(delayed(record)(folder, *task) for task in tasks)
    return [row for part in tqdm(parts, total=len(tasks), desc=label, unit="speaker") for row in part]


def _record_unseen(folder: Path, speaker: Speaker, seed: int) -> list[str]:
    """One recording of 3.5 to 12 s; return its line of `labels.csv`."""
    session = Session(speaker, seed)
    sound = session.record(session.read_aloud(session.write_sentence(), session.rng.uniform(3.5, 9)))
    codec, rate_hz, channels = UNSEEN_FORMATS[speaker.number % len(UNSEEN_FORMATS)]
    sound = np.stack([sound, 0.7 * sound][:channels], axis=-1)
    write_audio(folder / f"{speaker.number}.{codec}", sound, session.rate_hz, rate_hz)
    return [f"{speaker.number}.{codec},unseen-{speaker.number},{speaker.gender},{speaker.age_years}"]


def _write_faulty(folder: Path, speaker: Speaker, seed: int) -> list[str]:
    """Write the `FAULTY` files; return their lines of `labels.csv`."""
    session = Session(speaker, seed)
    rate_hz, spoken = session.rate_hz, session.record(session.read_aloud(session.write_sentence(), 3.0))
    noise = 0.1 * session.make_noise(5 * rate_hz)
    write_text(folder / FAULTY[0], [])
    write_text(folder / FAULTY[1], ["shopping list: seven wooden spoons"])
    for name, sound in zip(FAULTY[2:], [spoken[: rate_hz // 2], spoken[: 2 * rate_hz], 0 * noise, noise]):
        write_audio(folder / name, sound, rate_hz, 16_000)
    who = f"unseen-{speaker.number},{speaker.gender},{speaker.age_years}"
    return [f"{name},{who if 'second' in name else ',,'}" for name in FAULTY]


def _write_folder(folder: Path, settings: dict, write: Callable[[Path], dict]) -> dict:
    """Let `write` fill a temporary neighbour of `folder`, rename it when it is whole, and return the manifest."""
    folder, manifest = Path(folder), {"synthetic": True, "settings": settings | {"version": VERSION}}
    path = folder / "manifest.json"
    if path.exists() and load_json(path)["settings"] == manifest["settings"]:
        return load_json(path)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder}: holds something else, not {settings}; delete it or name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as partial:
        whole = Path(partial) / "whole"
        manifest |= write(whole)
        save_json(whole / "manifest.json", manifest)
        whole.rename(folder)
    return manifest
