import json

import numpy as np
import pytest
import torch
from test_windows import cut, make_clips

from lib import probes
from lib.embed import Work
from lib.encoders import UNTRAINED, load_encoder
from lib.speed import bench, encoder_bench
from lib.speed.bench import main, repeat_work
from lib.speed.encoder_bench import (
    measure_batches,
    measure_engines,
    measure_errors,
    measure_probes,
    paper_loop,
    run_all,
    run_bare,
    run_stage,
)
from lib.speed.engines import load_engine


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    clips = make_clips(folder, [5.0, 3.0])
    return Work(cut(folder, clips)[0], clips, {"tones": folder})


def test_the_papers_loop_gives_one_emission_a_window(work):
    encoder = load_encoder(UNTRAINED)
    emissions = paper_loop(encoder, work)
    assert [emission.shape for emission in emissions] == [(149, 32)] * 3
    with torch.inference_mode():
        from lib.audio import read_waveform

        sound = read_waveform(work.roots["tones"] / "clip00.wav", 2.0, 5.0)
        assert np.array_equal(emissions[1], encoder.model(torch.from_numpy(sound)[None])[0][0].numpy())


def test_repeated_windows_have_ids_of_their_own_and_still_find_their_clips(work):
    windows, clips = repeat_work(work.windows, work.clips, 8)
    assert len(windows) == 9
    assert windows["window_id"].is_unique
    assert set(windows["clip_id"]) <= set(clips["clip_id"])
    run_stage(load_engine(load_encoder(UNTRAINED), "emission"), Work(windows, clips, work.roots))


def test_errors_are_measured_against_the_exact_values(work):
    engine = load_engine(load_encoder(UNTRAINED), "emission", batch=2)
    waveforms = np.random.default_rng(0).normal(0, 0.1, (3, 48_000)).astype(np.float32)
    exact = run_all(engine, waveforms)
    assert exact["frames"].shape == (3, 149, 32)
    run_bare(engine, waveforms)
    off = {name: values + 0.5 for name, values in exact.items()}
    found = measure_errors(off, exact)
    assert found["frames_max"] == pytest.approx(0.5, abs=1e-5)
    assert found["layers_rms"] == pytest.approx(0.5 / np.sqrt(np.mean(exact["layers"] ** 2)), rel=1e-4)


def test_every_contestant_has_its_seconds_or_says_what_is_missing(work, monkeypatch):
    monkeypatch.setattr(encoder_bench, "compiled_loop", lambda *arguments: lambda: None)  # takes a minute
    encoder = load_encoder(UNTRAINED)
    table = {(row["engine"], row["precision"], row["streams"], row["batch"]): row
             for row in measure_engines(encoder, work, tries=1)}  # fmt: skip
    names = {name for name, *_ in table}
    assert {
        "the paper's loop",
        "transformers, one window a call",
        "torch",
        "openvino",
        "onnxruntime",
        "eGeMAPS",
    } <= names
    assert {
        "torch without oneDNN",
        "torch.compile",
        "torch, weight norm in every pass",
        "torch, one process a core",
    } <= names
    for row in table.values():
        assert row.get("bare_s", 0) > 0 or row.get("stage_s", 0) > 0 or row["note"], row
    exact = table["torch", "float32", 1, 4]
    assert exact["stage_over_bare"] > 0
    assert exact["frames_max"] < 1e-4
    assert table["torch, one process a core", "float32", encoder_bench.cores(), 4]["bare_ratio"] > 0


def test_a_missing_extra_is_a_note_in_its_row(work, monkeypatch):
    monkeypatch.setattr(encoder_bench, "missing_package", lambda library, precision: {"torch": None}.get(library, "it"))
    rows = measure_batches(load_encoder(UNTRAINED), work, tries=1)
    assert [row["batch"] for row in rows] == encoder_bench.BATCHES * 3
    assert all(("note" in row) == (row["engine"] == "openvino") for row in rows)
    assert all(row["bare_s"] > 0 for row in rows if row["engine"] == "torch")


def test_the_same_windows_come_from_every_format_of_the_audio(work, tmp_path):
    exact = encoder_bench.waveforms_of(work)
    wav = encoder_bench.in_format(work, tmp_path, "wav", 16_000)
    assert np.abs(encoder_bench.waveforms_of(wav) - exact).max() < 1e-4
    mp3 = encoder_bench.in_format(work, tmp_path, "mp3", 48_000)
    assert {path.suffix for path in tmp_path.iterdir()} == {".wav", ".mp3"}
    assert np.corrcoef(encoder_bench.waveforms_of(mp3).ravel(), exact.ravel())[0, 1] > 0.9
    rows = encoder_bench.measure_formats([load_engine(load_encoder(UNTRAINED), "emission", batch=2)], work, tries=1)
    assert [row["audio"] for row in rows] == list(encoder_bench.FORMATS)
    assert all(row["stage_over_bare"] > 0 for row in rows)


def test_probes_compare_every_precision_with_float32(work, monkeypatch):
    monkeypatch.setattr(encoder_bench, "PROBED", [("torch", "float32"), ("torch", "bfloat16")])

    def follow(vectors, labels, *rest, **options):  # answers that any change of the vectors changes
        wrong = np.random.default_rng(int(1e9 * np.abs(vectors).mean())).random(len(labels)) < 0.5
        return np.where(wrong, 1 - labels, labels)

    monkeypatch.setattr(probes, "predict_folds", follow)
    windows, clips = repeat_work(work.windows, work.clips, 6)
    clips = clips.assign(
        age_years=np.arange(len(clips)) % 4 * 10.0, gender=np.where(np.arange(len(clips)) % 2, "male", "female")
    )
    rows = measure_probes(load_encoder(UNTRAINED), Work(windows, clips, work.roots))
    assert [row["precision"] for row in rows] == ["float32"] * 3 + ["bfloat16"] * 3
    assert all(row["largest_change_points"] == 0 for row in rows[:3])
    assert all(row["largest_change_points"] > 0 for row in rows[3:])


def test_a_part_that_fails_leaves_a_note_and_the_next_is_measured_and_saved(tmp_path, monkeypatch, capsys):
    def fail(work):
        raise ImportError("no Ray here")

    monkeypatch.setattr(bench, "load_full_size", lambda: (load_encoder(UNTRAINED), True))
    monkeypatch.setattr(bench, "measure_gemm", lambda: {"float32": 1.0})
    monkeypatch.setattr(bench, "make_work", lambda corpus, folder, count: (None, None))
    monkeypatch.setattr(bench, "measure_ray", fail)
    monkeypatch.setattr(bench, "measure_training", lambda rounds: [{"form": "plain loop", "ratio": 1.0}])
    assert main(["--only", "ray", "training", "--out", str(tmp_path / "bench.json")]) == 0
    saved = json.loads((tmp_path / "bench.json").read_text())
    assert saved["ray"] == [{"note": "ImportError: no Ray here"}]
    assert saved["training"][0]["ratio"] == 1.0
    assert set(saved["about"]["seconds"]) == {"ray", "training"}
    assert "no Ray here" in capsys.readouterr().out
