"""The whole recipe of wav2vec2-tiny: `python -m lib.tiny.recipe --root FOLDER --out FOLDER`.
Speech is decoded once, without whom the encoder's card leaves out; views and the teachers' answers about them are made, the
student learns, and its averaged weights are written as the encoder that ships. Every step goes on where a kill left off."""

import argparse
import itertools
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from lib import paths, tables
from lib.audio import UnreadableAudio, read_waveform
from lib.compute import choose_compute, cores
from lib.corpora import find_roots, read_clips
from lib.corpora.own_data import list_recordings
from lib.encoders import TINY
from lib.stages import file_checksum
from lib.tiny.distill import CARD, Recipe, distill
from lib.tiny.teacher import SCALE, Speech, make_shard, open_speech, open_teacher

CORPORA = ["common_voice:common_voice_many", "speechocean762"]  # the card's `heard` names them to readers
UNLABELLED = "unlabelled_en"  # a folder of sounds about which nothing is known
PREFIX = 12  # characters of a speaker's own id that the list of those left out holds


def is_left_out(clips: pd.DataFrame, left_out: dict[str, Any]) -> pd.Series:
    """Whether each clip is of a speaker that the tiny must never hear: in a language left out, or named by the card's list."""
    own_id = clips["speaker_id"].str.partition(":")[2].str.slice(0, PREFIX)
    apart = clips["language"].isin(left_out["languages"]) | own_id.isin(left_out["speakers"])
    return clips["speaker_id"].isin(clips.loc[apart, "speaker_id"])


def decode_speech(root: Path, corpora: list[str], left_out: dict[str, Any], folder: Path) -> Speech:
    """Every clip that may be heard, decoded once into `folder`; `ledger.parquet` there names what could not be used, and why."""
    sound, listed = folder / "speech.npy", folder / "speech.parquet"
    if not listed.exists():
        clips, ledger, _ = read_clips(corpora, root)
        unlabelled = list_recordings(root / UNLABELLED).drop(columns="path").rename(columns={"name": "path"})
        unlabelled = unlabelled.assign(corpus="unlabelled", clip_id="unlabelled:" + unlabelled["path"])
        roots = find_roots(corpora, root) | {"unlabelled": root / UNLABELLED}
        parts, rows, lost, start = [], [], [], 0
        heard = pd.concat([clips[~is_left_out(clips, left_out)], unlabelled], ignore_index=True)
        cuts = ((roots[clip.corpus] / clip.path, clip.start_s, clip.end_s) for clip in heard.itertuples(index=False))
        decoded = Parallel(cores(), batch_size=16, return_as="generator")(delayed(decode_clip)(*cut) for cut in cuts)
        for clip, samples in zip(heard.itertuples(index=False), tqdm(decoded, "decoding", len(heard), unit="file")):
            if isinstance(samples, str):
                lost.append((clip.corpus, clip.clip_id, "cannot be decoded", samples))
                continue
            parts.append(samples)
            rows.append({"clip_id": clip.clip_id, "start": start, "samples": len(samples)})
            start += len(samples)
        undecoded = pd.DataFrame(lost, columns=list(tables.LEDGER.columns))
        whole = pd.concat([ledger, undecoded], ignore_index=True)
        tables.save_table(folder / "ledger.parquet", whole, "ledger")
        print(f"{len(rows):,} clips are heard, {len(whole):,} left out as {folder / 'ledger.parquet'} says")
        with paths.write_whole(sound) as partial:
            np.save(partial, np.concatenate(parts))
        paths.save_frame(listed, pd.DataFrame(rows))
    return open_speech(folder)


def decode_clip(path: Path, start_s: float, end_s: float) -> np.ndarray | str:
    """Samples (n,) int16 of a clip, or why it cannot be decoded."""
    try:
        return np.round(read_waveform(path, start_s, end_s) * SCALE).astype(np.int16)
    except UnreadableAudio as error:
        return str(error)


def export(folder: Path, target: Path) -> Path:
    """Write the averaged weights of the training in `folder` as the encoder: float16 safetensors, the card and the loss curve."""
    weights, path = load_file(folder / "checkpoint.safetensors"), target / f"{TINY}.safetensors"
    ema = {key[4:]: value.half().contiguous() for key, value in weights.items() if key.startswith("ema.")}
    with paths.write_whole(path) as partial:
        save_file(ema, partial)
    paths.save_json(target / f"{TINY}.json", CARD | {"sha256": file_checksum(path)})
    with paths.write_whole(target / f"{TINY}-history.csv") as partial:
        partial.write_bytes((folder / "history.csv").read_bytes())
    return path


def main() -> None:
    """Command-line entry."""
    parser = argparse.ArgumentParser(prog="python -m lib.tiny.recipe", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help=f"folder of {CORPORA} and {UNLABELLED}")
    parser.add_argument("--out", type=Path, required=True, help="folder for views, checkpoints and the encoder")
    parser.add_argument("--name", default="training", help="folder below --out for this student; all share its views")
    for field in fields(Recipe):  # a loss is left out with the weight 0
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    options, compute = parser.parse_args(), choose_compute()
    torch.set_num_threads(cores())
    recipe = Recipe(**{field.name: getattr(options, field.name) for field in fields(Recipe)})
    decode_speech(options.root, CORPORA, CARD["left_out"], options.out)
    open_teacher(options.out)  # finds the components before others read them
    with ProcessPoolExecutor(max(1, cores() - 2), get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        each = pool.map if compute.device == "cuda" else map  # beside the student, or one when it asks for one
        made = each(make_shard, itertools.repeat(options.out), range(recipe.shards))
        made = iter(tqdm(made, "views and answers", recipe.shards, unit="shard"))
        try:
            distill(options.out / "views", made, options.out / options.name, recipe, compute)
        finally:
            pool.shutdown(cancel_futures=True)  # where the student stops early, by an error or by Ctrl-C
    print(export(options.out / options.name, options.out / options.name))


if __name__ == "__main__":
    main()
