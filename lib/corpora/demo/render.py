"""Synthetic corpora that are shaped like the real ones, and recordings of invented speakers that no stage has seen.

Everything is drawn from one seed: the same seed gives the same tables byte for byte and the same samples.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from lib.corpora.demo import common_voice_layout, voxceleb_layout
from lib.corpora.demo.recording import make_noise, record, resample, set_level, write_audio
from lib.corpora.demo.speakers import TEEN_CLIPS, Speaker, draw_ages, draw_speaker
from lib.corpora.demo.studio import LOCALES, Task, open_session, render_all
from lib.paths import load_json, save_json, write_whole
from lib.stages import COMPLETED

VERSION = 1  # raise when the same seed gives other recordings
LEAST_SPEAKERS = 12
EXTRA_NUMBER = 5_000  # speakers beside the labelled ones
UNSEEN_NUMBER = 20_000  # speakers of no corpus
UNSEEN_FORMATS = [("wav", 44_100, 2), ("flac", 48_000, 1), ("ogg", 24_000, 1), ("mp3", 32_000, 1), ("wav", 8_000, 1)]
UNSEEN_FAULTS = {  # what is wrong with a planted file: its name
    "empty file": "empty.wav", "text file": "notes.wav", "half a second": "half-second.wav", "two seconds": "two-seconds.wav",
    "silence": "silence.wav", "white noise": "noise.wav",
}  # fmt: skip


def render_synthetic_corpora(
    folder: Path, seed: int, speakers: int = 96, clips_per_speaker: int = 9, workers: int | None = None
) -> dict[str, Any]:
    """Write `common_voice/` and `voxceleb/` under `folder` and return the manifest, which is also `manifest.json`.

    Half of the `speakers` go to each corpus; teens get about a third of `clips_per_speaker`. A few more speakers without
    labels come on top. Killed half-way, the next call goes on with the speakers that are missing; finished, it only
    reads the manifest. ValueError when `folder` holds other corpora or there are too few speakers.
    """
    folder = Path(folder)
    if speakers < LEAST_SPEAKERS or clips_per_speaker < 2:
        raise ValueError(
            f"speakers={speakers}, clips_per_speaker={clips_per_speaker}: ask for at least {LEAST_SPEAKERS} and 2"
        )
    settings = {"seed": seed, "speakers": speakers, "clips_per_speaker": clips_per_speaker, "version": VERSION}
    if _open_folder(folder, settings):
        return load_json(folder / "manifest.json")
    people = draw_population(seed, speakers)
    common_voice = _plan("common_voice", folder, seed, people[: speakers // 2], clips_per_speaker)
    voxceleb = _plan("voxceleb", folder, seed, people[speakers // 2 :], clips_per_speaker)
    records = render_all(common_voice + voxceleb, _render_speaker, workers, "synthetic speakers")
    cut = len(common_voice)
    manifest = {
        "synthetic": True,
        "settings": settings,
        "common_voice": common_voice_layout.write_common_voice(folder, records[:cut]),
        "voxceleb": voxceleb_layout.write_voxceleb(folder, records[cut:]),
    }
    _write_speakers(folder / "speakers.csv", common_voice + voxceleb)
    return _close_folder(folder, manifest)


def render_unseen(folder: Path, seed: int, count: int = 110, workers: int | None = None) -> dict[str, Any]:
    """Write `count` recordings of as many new invented speakers in varied formats, a few bad files, and `labels.csv`.

    `labels.csv` has the columns path, speaker, gender, age (years); "" where a file holds no speech. Returns the
    manifest: {"recordings": n, "planted": {kind: path}}. Resumes as `render_synthetic_corpora` does.
    """
    folder = Path(folder)
    settings = {"seed": seed, "count": count, "version": VERSION}
    if _open_folder(folder, settings):
        return load_json(folder / "manifest.json")
    rng = np.random.default_rng([seed, 3])
    tasks = []
    for number, (gender, age_years) in enumerate(draw_ages(count, rng), start=UNSEEN_NUMBER):
        tasks.append(Task(str(folder), "unseen", seed, _draw(seed, number, gender, age_years), 1))
    rows = [found["row"] for found in render_all(tasks, _render_speaker, workers, "unseen speakers")]
    rows += _write_bad_files(folder, seed)
    with write_whole(folder / "labels.csv") as partial:
        text = "\n".join(["path,speaker,gender,age", *(",".join(row) for row in rows)])
        partial.write_text(text + "\n", encoding="utf-8", newline="\n")
    manifest = {"synthetic": True, "settings": settings, "recordings": count, "planted": UNSEEN_FAULTS}
    return _close_folder(folder, manifest)


def draw_population(seed: int, speakers: int) -> list[Speaker]:
    """The labelled speakers: the first half for Common Voice, the rest for VoxCeleb, each with teens of both sexes."""
    people: list[Speaker] = []
    for corpus, count in enumerate((speakers // 2, speakers - speakers // 2)):
        for gender, age_years in draw_ages(count, np.random.default_rng([seed, 0, corpus])):
            people.append(_draw(seed, len(people), gender, age_years))
    return people


def _draw(seed: int, number: int, gender: str, age_years: int) -> Speaker:
    rng = np.random.default_rng([seed, 1, number])
    language = str(rng.choice(list(LOCALES), p=list(LOCALES.values())))
    return draw_speaker(number, gender, age_years, language, rng)


def _plan(corpus: str, folder: Path, seed: int, people: list[Speaker], clips_per_speaker: int) -> list[Task]:
    """One task a labelled speaker, the sores spread over them, and the speakers without labels."""
    module = common_voice_layout if corpus == "common_voice" else voxceleb_layout
    rng = np.random.default_rng([seed, 4, len(corpus)])
    tasks, sores = [], [name for name, sore in module.SORES.items() for _ in range(sore.times)]
    for index, speaker in enumerate(people):
        share = TEEN_CLIPS if speaker.age_years < 20 else 1.0
        clips = max(2, round(share * clips_per_speaker + rng.uniform(-1, 1)))
        mine = tuple(sore for k, sore in enumerate(sores) if k * 5 % len(people) == index)
        tasks.append(Task(str(folder), corpus, seed, speaker, clips, mine))
    for k, labels in enumerate(module.UNLABELLED):
        number = people[-1].number + 1 + k if corpus == "voxceleb" else EXTRA_NUMBER + k
        extra = _draw(seed, number, ["male", "female"][k % 2], 34 + 7 * k)
        tasks.append(Task(str(folder), corpus, seed, extra, 2, (), labels))
    return tasks


def _render_speaker(task: Task) -> dict[str, Any]:
    render = {
        "common_voice": common_voice_layout.render_common_voice_speaker,
        "voxceleb": voxceleb_layout.render_voxceleb_speaker,
        "unseen": _render_unseen_speaker,
    }
    return render[task.corpus](task)


def _render_unseen_speaker(task: Task) -> dict[str, Any]:
    """One recording of 4 to 12 s; return its row of `labels.csv`."""
    speaker = task.speaker
    codec, rate_hz, channels = UNSEEN_FORMATS[speaker.number % len(UNSEEN_FORMATS)]
    with open_session(task) as session:
        speech = [
            session.pad(session.say(session.write_sentence()), 0.2, 0.6) for _ in range(session.rng.integers(1, 4))
        ]
        sound = record(np.concatenate(speech), session.rate_hz, speaker, session.rng)
        sound = resample(sound, session.rate_hz, rate_hz)
    if channels == 2:
        sound = np.stack([sound, 0.7 * sound], axis=1)
    path = f"recordings/{speaker.number}.{codec}"
    write_audio(Path(task.folder) / path, sound, rate_hz, codec)
    return {"row": [path, f"unseen-{speaker.number}", speaker.gender, str(speaker.age_years)]}


def _write_bad_files(folder: Path, seed: int) -> list[list[str]]:
    """Write the files of `UNSEEN_FAULTS`; return their rows of `labels.csv`, blank where there is no voice."""
    target, rows = folder / "recordings", []
    speaker = _draw(seed, UNSEEN_NUMBER - 1, "female", 31)
    with open_session(Task(str(folder), "unseen", seed, speaker, 1)) as session:
        spoken = resample(set_level(session.say(session.write_sentence()), -20), session.rate_hz, 16_000)
        noise = 0.1 * make_noise(5 * 16_000, 0, session.rng)
    sounds = {
        "half a second": spoken[:8_000],
        "two seconds": spoken[:32_000],
        "silence": 0 * noise,
        "white noise": noise,
    }
    for kind, name in UNSEEN_FAULTS.items():
        if kind in sounds:
            write_audio(target / name, sounds[kind], 16_000, "wav")
        else:
            with write_whole(target / name) as partial:
                partial.write_bytes(b"" if kind == "empty file" else b"shopping list: seven wooden spoons\n")
        who = [f"unseen-{speaker.number}", speaker.gender, str(speaker.age_years)] if "second" in kind else ["", "", ""]
        rows.append([f"recordings/{name}", *who])
    return rows


def _open_folder(folder: Path, settings: dict[str, Any]) -> bool:
    """Prepare `folder` for these settings; True when it is already complete."""
    begun = folder / ".settings.json"
    if begun.exists() and (found := load_json(begun)) != settings:
        raise ValueError(
            f"{folder}: holds a rendering with {found}, asked for {settings}; delete the folder or name another"
        )
    if not begun.exists():
        save_json(begun, settings)
    return (folder / COMPLETED).exists()


def _close_folder(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    save_json(folder / "manifest.json", manifest)
    shutil.rmtree(folder / ".speakers", ignore_errors=True)
    save_json(folder / COMPLETED, {"files": sum(path.is_file() for path in folder.rglob("*"))})
    return manifest


def _write_speakers(path: Path, tasks: list[Task]) -> None:
    """What was drawn for every speaker, for a look at the distributions; no reader of a corpus reads it."""
    lines = ["number,corpus,gender,age_years,language,f0_hz,tract_scale,snr_db"]
    for task in tasks:
        s = task.speaker
        drawn = f"{s.voice.f0_hz:.1f},{s.voice.tract_scale:.3f},{s.snr_db:.1f}"
        lines.append(f"{s.number},{task.corpus},{s.gender},{s.age_years},{s.language},{drawn}")
    with write_whole(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
