import dataclasses
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch
from test_windows import cut, make_clips

from lib import embed
from lib.audio import read_waveform
from lib.baselines import measure_acoustics
from lib.embed import (
    Work,
    batch_sizes,
    embed_batch,
    embed_windows,
    encode_batch,
    example_layers,
    fill_store,
    fit_dtype,
    project_windows,
    run_ahead,
    seeded_noise,
    waveform_batches,
)
from lib.encoders import UNTRAINED, load_encoder
from lib.speed.engines import load_engine
from lib.store import Store
from lib.windows import Windowing, as_heard, as_stored

LENGTHS_S = [7.0, 1.5, 3.0, 9.5, 5.0, 4.0]  # 3 + 1 (repeated) + 1 + 4 + 2 + 1 = 12 windows


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(UNTRAINED)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(windows, clips, roots) of six noise clips, one of them shorter than a window."""
    folder = tmp_path_factory.mktemp("world")
    clips = make_clips(folder, LENGTHS_S)
    windows, _ = cut(folder, clips, short_clips="repeat")
    assert len(windows) == 12
    return windows, clips, {"tones": folder}


def window_waveform(world, number):
    windows, clips, roots = world
    window = windows.iloc[number]
    clip = clips.set_index("clip_id", drop=False).loc[window.clip_id]
    waveform = read_waveform(roots[clip.corpus] / clip.path)[round(window.start_s * 16_000) :][:48_000]
    return as_heard(as_stored(waveform), 48_000)[None]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-3)])
def test_the_store_holds_what_the_encoder_says_of_every_window(world, encoder, tmp_path, dtype, tolerance):
    made = embed_windows(tmp_path, *world, encoder, shard_windows=5, dtype=dtype)
    store = Store(tmp_path, checksums=True)
    assert (made, len(store), len(store.description["sha256"])) == (3, 12, 3)
    for number in (0, 2, 3, 6, 11):
        ids = [world[0]["window_id"][number]]
        encoded = encoder.encode(torch.from_numpy(window_waveform(world, number)))
        expected = {"frames": encoded["emission"], "layers": encoded["hidden"].mean(2), "conv": encoded["conv"].mean(1)}
        for name, tensor in expected.items():
            found = store.features(name, ids).all()
            assert found.shape == tensor.shape
            assert np.abs(found - tensor.numpy()).max() <= tolerance * max(1, tensor.abs().max())
        acoustics = measure_acoustics(window_waveform(world, number), 16_000)
        np.testing.assert_allclose(store.features("acoustics", ids).all(), acoustics, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("feature", "shape"), [("conv", (149, 192)), ("layer:0", (149, 192)), ("emission", (149, 32))])
def test_the_frames_are_those_of_the_feature_asked_for(world, encoder, tmp_path, feature, shape):
    embed_windows(tmp_path, *world, encoder, feature=feature, dtype="float32")
    store = Store(tmp_path)
    assert store.description["feature"] == feature
    frames = store.features("frames", world[0]["window_id"])
    assert frames.shape == (12, *shape)
    if feature == "layer:0":
        averages = store.features("layers", world[0]["window_id"]).all()[:, 0]
        np.testing.assert_allclose(frames.all().mean(axis=1), averages, atol=1e-5)


def test_a_killed_run_makes_only_what_is_missing_and_ends_with_the_same_bytes(world, encoder, tmp_path):
    embed_windows(tmp_path / "whole", *world, encoder, shard_windows=3)
    engine = load_engine(encoder, "emission")
    calls = []

    def stumble(waveforms):
        calls.append(len(waveforms))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return engine.run(waveforms)

    work = Work(*world, shard_windows=3)
    with pytest.raises(KeyboardInterrupt):
        fill_store(tmp_path / "cut", work, dataclasses.replace(engine, run=stumble, streams=1))
    assert not (tmp_path / "cut" / "store.json").exists()
    left = len(list((tmp_path / "cut").glob("shard-*")))
    assert 1 <= left <= 2
    assert embed_windows(tmp_path / "cut", *world, encoder, shard_windows=3) == 4 - left
    for path in sorted((tmp_path / "whole").glob("shard-*")):
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()
    assert embed_windows(tmp_path / "cut", *world, encoder, shard_windows=3) == 0


def test_shards_of_another_setting_are_made_again(world, encoder, tmp_path):
    embed_windows(tmp_path, *world, encoder, shard_windows=6)
    assert embed_windows(tmp_path, *world, encoder, shard_windows=6, feature="layer:1") == 2
    assert embed_windows(tmp_path, *world, encoder, shard_windows=6, feature="layer:1", dtype="float32") == 2
    assert embed_windows(tmp_path, *world, encoder, shard_windows=12, feature="layer:1", dtype="float32") == 1
    assert len(Store(tmp_path)) == 12


def test_each_clip_is_decoded_once_and_batches_are_as_asked(world, monkeypatch):
    decoded = []
    read = embed.read_waveform
    monkeypatch.setattr(embed, "read_waveform", lambda path, *span: decoded.append(path.name) or read(path, *span))
    sizes = [4, 1, 4, 3]
    batches = list(waveform_batches(*world, 48_000, sizes))
    assert [batch.shape for batch in batches] == [(size, 48_000) for size in sizes]
    assert sorted(decoded) == sorted(world[1]["path"])
    np.testing.assert_array_equal(np.concatenate(batches)[7:8], window_waveform(world, 7))
    assert batches[0].dtype == np.float32


def test_batches_never_straddle_two_shards():
    assert batch_sizes(10, 4) == [4, 4, 2]
    assert batch_sizes(4, 4) == [4]
    assert batch_sizes(0, 4) == []


def test_a_clip_that_vanished_is_named_with_what_to_do(world, encoder, tmp_path):
    windows, clips, _ = world
    with pytest.raises(
        ValueError, match=r"clip tones:clip00.wav was cut, but clip00.wav: no such file; run 02_segment"
    ):
        embed_windows(tmp_path, windows, clips, {"tones": tmp_path}, encoder)
    assert list(tmp_path.glob("*shard*")) == []


def test_unusable_settings_are_refused(world, encoder, tmp_path):
    windows, clips, roots = world
    with pytest.raises(ValueError, match=r"dtype = 'float8': must be one of \['float16', 'float32'\]"):
        embed_windows(tmp_path, *world, encoder, dtype="float8")
    with pytest.raises(ValueError, match="no windows to embed; the ledger of 02_segment"):
        embed_windows(tmp_path, windows.iloc[:0], clips, roots, encoder)
    with pytest.raises(ValueError, match="shard_windows = 0"):
        embed_windows(tmp_path, *world, encoder, shard_windows=0)
    with pytest.raises(ValueError, match="feature 'layer:9': must be"):
        embed_windows(tmp_path, *world, encoder, feature="layer:9")


def test_values_that_half_precision_cannot_hold_are_named():
    values = {"frames": np.array([[7e4]], np.float32)}
    with pytest.raises(ValueError, match="'frames' holds 70000, too large for float16"):
        fit_dtype(values, "float16")
    assert fit_dtype(values, "float32")["frames"].dtype == np.float32
    assert fit_dtype({"frames": values["frames"] / 2}, "float16")["frames"].dtype == np.float16


def test_predicting_sees_exactly_what_the_store_holds(world, encoder, tmp_path):
    embed_windows(tmp_path, *world, encoder)
    store = Store(tmp_path)
    waveforms = np.concatenate([window_waveform(world, number) for number in range(12)])
    for name, values in encode_batch(encoder, waveforms, "emission", "float16").items():
        assert values.dtype == np.float16
        found = store.features(name, world[0]["window_id"]).all()
        assert np.abs(values.astype(np.float32) - found).max() < 2e-3


def test_noise_goes_through_with_the_frames_that_the_networks_expect(encoder):
    noise = seeded_noise(48_000, 3)
    assert np.array_equal(noise, seeded_noise(48_000, 3))
    tensors = embed_batch(load_engine(encoder, "emission"), noise, "float16")
    assert tensors["frames"].shape == (1, 149, 32)
    assert sorted(tensors) == ["acoustics", "conv", "frames", "layers"]


# ------------------------------------------------------------------------------------------------------ running ahead


def test_work_done_ahead_comes_back_in_order():
    def work(item):
        time.sleep(0.002 * (item % 3))
        return item

    assert list(run_ahead(work, range(30), 4, 8)) == list(range(30))
    assert list(run_ahead(work, [], 2, 4)) == []


def test_no_more_is_under_way_than_allowed_however_slow_the_reader():
    begun, most = [], 0
    for done, _ in enumerate(run_ahead(begun.append, range(50), 2, 6)):
        time.sleep(0.001)
        most = max(most, len(begun) - done)
    assert most <= 6
    begun.clear()
    heavy = run_ahead(begun.append, range(50), 2, 100, lambda item: 60)
    next(heavy)
    time.sleep(0.05)
    assert len(begun) <= 3


def test_a_failure_ahead_reaches_the_reader_and_what_has_not_begun_is_given_up():
    begun = []

    def work(item):
        begun.append(item)
        time.sleep(0.01)
        if item == 2:
            raise ValueError("item 2 is bad")
        return item

    results = run_ahead(work, range(100), 1, 20)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="item 2 is bad"):
        next(results)
    assert len(begun) < 20
    assert threading.active_count() < 10


# --------------------------------------------------------------------------------------------------- for the notebook


def test_one_window_is_shown_layer_by_layer(world, encoder):
    windows, clips, roots = world
    example = example_layers(encoder, windows, clips, roots, Windowing(), "emission", layers=3, seed=1)
    assert [layer.shape for layer in example.layers] == [(149, 192)] * 3
    assert example.names == ["transformer layer 1", "transformer layer 2", "transformer layer 3"]
    assert example.frames.shape == (149, 32)


def test_windows_are_placed_on_a_plane_the_same_way_for_a_seed(world, encoder, tmp_path):
    embed_windows(tmp_path, *world, encoder)
    store = Store(tmp_path)
    first, again = (project_windows(store, world[0], world[1], seed=0, most=10) for _ in range(2))
    assert first.equals(again)
    assert len(first) == 10
    assert first[["x", "y"]].notna().all(axis=None)
    assert set(first["gender"]) == {"not known"}


def test_clips_that_share_an_id_are_refused(world):
    windows, clips, roots = world
    twice = pd.concat([clips.iloc[:1], clips])
    with pytest.raises(ValueError, match=f"clip_id {clips['clip_id'].iloc[0]} twice"):
        list(waveform_batches(windows, twice, roots, 48_000, [len(windows)]))


def test_the_exact_engine_is_made_once_for_all_batches(monkeypatch):
    encoder, made = load_encoder(UNTRAINED), []
    embed._exact_engine.cache_clear()  # of what other tests left
    monkeypatch.setattr(embed, "load_engine", lambda *given: made.append(given) or load_engine(*given))
    for _ in range(3):
        embed.encode_batch(encoder, np.zeros((1, 16_000), np.float32), "emission", "float32")
    assert len(made) == 1
