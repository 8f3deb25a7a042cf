"""VoxCeleb's own files: frame files with the cut rule, and the meta tables with speakers' genders.

Forms and meaning: https://www.robots.ox.ac.uk/~vgg/data/voxceleb/ and github.com/joonson/yousaidthat (scores).
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from imageio_ffmpeg import get_ffmpeg_exe as ffmpeg_command

FRAMES_PER_S = 25  # frame numbers are time stamps x 25, whatever the video's own rate
SAMPLES_PER_FRAME = 640  # 16,000 Hz / 25
SETS = {"dev": "train", "test": "test"}  # the official division, by speaker


@dataclass(frozen=True)
class Segment:
    """One frame file: a face track of one speaker. Offset in frames; the two confidences are the authors' scores."""

    speaker: str
    video: str
    first_frame: int
    last_frame: int
    offset: float | None = None
    face_confidence: float | None = None
    speech_confidence: float | None = None

    @property
    def start_s(self) -> float:
        """Start of the official cut in the video."""
        return self.first_frame / FRAMES_PER_S

    @property
    def end_s(self) -> float:
        """End of the official cut in the video."""
        return self.last_frame / FRAMES_PER_S

    @property
    def samples(self) -> int:
        """Length of the official 16 kHz cut: it ends on the sample of its last frame."""
        return (self.last_frame - self.first_frame) * SAMPLES_PER_FRAME + 1


def read_frame_file(path: Path) -> Segment:
    """Read one `txt` file of the frame archives. ValueError, naming the file, when it tells no stretch of time."""
    lines = Path(path).read_bytes().decode("utf-8-sig", errors="replace").split("\n")
    head: dict[str, str] = {}
    frames: list[int] = []
    for line in lines:
        field = re.match(r"\s*([A-Za-z][\w ]*?)\s*:\s*(.*?)\s*$", line)
        if field and not frames:
            head[field[1].casefold()] = field[2]
        elif match := re.match(r"\s*(\d+)(\s|$)", line):
            frames.append(int(match[1]))
    if not frames:
        raise ValueError(f"{path}: no frame rows")
    if frames[-1] <= frames[0]:
        raise ValueError(f"{path}: from frame {frames[0]} to frame {frames[-1]} is no stretch of time")
    scores = [_first_number(head.get(name, "")) for name in ("offset", "fv conf", "asd conf")]
    return Segment(head.get("identity", ""), head.get("reference", ""), frames[0], frames[-1], *scores)


def _first_number(text: str) -> float | None:
    match = re.match(r"-?\d+(\.\d+)?", text)
    return float(match[0]) if match else None


def read_voxceleb_meta(path: Path) -> pd.DataFrame:
    """Read `vox1_meta.csv` or `vox2_meta.csv` in any of its real forms (tabs or commas, byte-order mark, stray blanks).

    Columns: speaker, gender_raw, official_split ("train" for dev, "test"), name, nationality ("" where not given).
    Raises ValueError when a column is missing or a speaker stands there twice with different genders.
    """
    lines = Path(path).read_text(encoding="utf-8-sig", errors="replace").replace("\r\n", "\n").split("\n")
    separator = "\t" if "\t" in lines[0] else ","
    header, *rows = [[cell.strip() for cell in line.split(separator)] for line in lines if line.strip()] or [[]]
    patterns = {
        "speaker": r"VoxCeleb\d? ?ID", "gender_raw": "Gender", "split": "Set", "name": "Name|VGGFace1 ID",
        "nationality": "Nationality",
    }  # fmt: skip
    places = {key: _find_column(header, pattern) for key, pattern in patterns.items()}
    if places["speaker"] is None or places["gender_raw"] is None:
        raise ValueError(f"{path}: needs columns 'VoxCeleb1 ID' (or 2) and 'Gender', has {header}")
    table = pd.DataFrame(
        {key: [row[at] if at is not None and at < len(row) else "" for row in rows] for key, at in places.items()},
        dtype="str",
    ).drop_duplicates()
    twice = table.loc[table["speaker"].duplicated(), "speaker"]
    if len(twice):
        raise ValueError(f"{path}: speaker {twice.iloc[0]} stands there twice with different entries; keep one")
    table["official_split"] = table.pop("split").str.casefold().map(SETS)
    return table


def _find_column(header: list[str], pattern: str) -> int | None:
    return next((i for i, name in enumerate(header) if re.fullmatch(pattern, name, re.IGNORECASE)), None)


def media_seconds(path: Path) -> float:
    """Length of an audio or video file, by libsndfile or else by ffmpeg. ValueError when neither can tell."""
    import soundfile

    try:
        return float(soundfile.info(str(path)).duration)
    except soundfile.LibsndfileError:
        command = [ffmpeg_command() or "ffmpeg", "-hide_banner", "-nostdin", "-i", str(path.absolute())]
        told = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stderr
        match = re.search(r"Duration: (\d+):(\d+):(\d+\.\d+)", told)
        if not match:
            raise ValueError(f"{path}: neither libsndfile nor ffmpeg can read it; fetch it again") from None
        return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
