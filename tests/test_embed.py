import numpy as np
import pytest
import torch
from checks import killed_at, refused
from model_fixture import untrained

from lib import embed
from lib.embed import copy_folder, embed_windows, read_waveforms
from lib.encoders import bank_statistics, time_statistics
from lib.speed.engines import EngineChoice
from lib.store import Store, StoreWriter, open_stores
from lib.tiny.augment import alter_waveforms

CHOICE = EngineChoice()  # torch in float32
BLOCK = 5
IDS = [f"c:{number}@0" for number in range(12)]
LOUDNESS = np.linspace(300, 3000, len(IDS))[:, None]
WINDOWS = (LOUDNESS * np.random.default_rng(0).normal(size=(len(IDS), 16_000))).astype(np.int16)  # one second each


@pytest.fixture
def encoder(monkeypatch):
    """An untrained encoder, and blocks of five windows, so that a dozen make several."""
    monkeypatch.setattr(embed, "StoreWriter", lambda *given: StoreWriter(*given, block=BLOCK))
    return untrained()


def expected_statistics(encoder, waveforms):
    waveforms = torch.from_numpy(waveforms)
    stages = map(time_statistics, encoder.encode(waveforms).values())
    return torch.cat([*stages, bank_statistics(waveforms)], dim=1).numpy()


@pytest.mark.parametrize(("feature", "dtype", "tolerance"), [
    ("emission", "float16", 2e-3), ("emission", "float32", 1e-4), ("layer:2", "float32", 1e-4), ("", "float32", 1e-4),
])  # fmt: skip
def test_the_store_holds_what_the_encoder_says_of_every_window(encoder, tmp_path, feature, dtype, tolerance):
    assert embed_windows(tmp_path, WINDOWS, IDS, encoder, CHOICE, feature=feature, dtype=dtype) == 3
    store = Store(tmp_path)
    assert (store.parts, "frames" in store.description["shapes"]) == (encoder.parts(), bool(feature))
    for number in (11, 0, 4, 5):
        waveforms, ids = read_waveforms(WINDOWS, [number]), [IDS[number]]
        statistics = expected_statistics(encoder, waveforms)
        np.testing.assert_allclose(store.statistics(ids)[:], statistics, atol=tolerance, rtol=tolerance)
        if feature:
            frames = encoder.encode(torch.from_numpy(waveforms))[feature].numpy()
            np.testing.assert_allclose(store.frames(ids)[:], frames, atol=tolerance, rtol=tolerance)


def test_a_killed_run_makes_only_what_is_missing_and_ends_with_the_same_numbers(encoder, tmp_path):
    embed_windows(tmp_path / "whole", WINDOWS, IDS, encoder, CHOICE)
    with killed_at(3, embed, "encode_batch"):
        embed_windows(tmp_path / "cut", WINDOWS, IDS, encoder, CHOICE, workers=1)
    refused("no finished store", Store, tmp_path / "cut")
    assert [embed_windows(tmp_path / "cut", WINDOWS, IDS, encoder, CHOICE) for _ in range(2)] == [1, 0]
    whole, cut = (Store(tmp_path / name) for name in ("whole", "cut"))
    np.testing.assert_allclose(cut.frames(IDS)[:], whole.frames(IDS)[:], atol=2e-3)
    np.testing.assert_allclose(cut.statistics(IDS)[:], whole.statistics(IDS)[:], atol=2e-3, rtol=2e-3)


def test_altered_copies_lie_beside_the_windows_and_are_drawn_by_the_seed(encoder, tmp_path):
    for copy in (0, 1, 2):
        options = {"feature": "", "dtype": "float32", "copy": copy, "seed": 3}
        embed_windows(copy_folder(tmp_path, copy), WINDOWS, IDS, encoder, CHOICE, **options)
    plain, first, second = (store.statistics(IDS)[:] for store in open_stores(tmp_path))
    assert min(np.abs(first - other).max() for other in (plain, second)) > 0.1
    altered = alter_waveforms(read_waveforms(WINDOWS, slice(0, BLOCK)), [3, 1, 0])
    np.testing.assert_allclose(first[:BLOCK], expected_statistics(encoder, altered), atol=1e-3, rtol=1e-3)


def test_unusable_settings_are_refused(encoder, tmp_path):
    for message, sounds, ids, options in (
        ("no windows to embed; the ledger of 02_segment", WINDOWS[:0], [], {}),
        ("11 ids for 12 windows", WINDOWS, IDS[:-1], {}),
        ("feature 'layer:9': no stage with frames", WINDOWS, IDS, {"feature": "layer:9"}),
        ("dtype 'int8': must be float16 or float32", WINDOWS, IDS, {"dtype": "int8"}),
    ):
        refused(message, embed_windows, tmp_path, sounds, ids, encoder, CHOICE, **options)
    assert not list(tmp_path.iterdir())
