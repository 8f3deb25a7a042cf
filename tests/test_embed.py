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
TEN = [f"corpus:clip{k}@0" for k in range(10)]
PARTS = {"conv": [0, 2], "layer:0": [2, 5], "layer:1": [5, 8], "bank": [8, 9]}
DESCRIPTION = {"encoder": "none", "feature": "emission", "dtype": "float32", "parts": PARTS}
DESCRIPTION |= {"shapes": {"statistics": [9], "frames": [5, 3]}}


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


def tensors(rows):
    """Values from which row and column can be told: statistics (n, 9) hold 100 row + column, frames (n, 5, 3) the row."""
    numbers = np.arange(rows.start, rows.stop)
    frames = numbers[:, None, None] + np.zeros((1, 5, 3))
    return {"statistics": 100 * numbers[:, None] + np.arange(9.0), "frames": frames}


def fill(folder, block=4, ids=TEN, **changes):
    """A finished store of the ten windows in blocks of four; its folder."""
    writer = StoreWriter(folder, ids, DESCRIPTION | changes, block)
    for rows in writer.missing():
        writer.write(rows, tensors(rows))
    writer.finish()
    return folder


def test_a_store_gives_back_what_was_put_in_by_id_and_in_the_order_asked(tmp_path):
    store, order = Store(fill(tmp_path)), np.random.default_rng(0).permutation(10)
    frames = store.frames([TEN[9], TEN[0], TEN[5]])
    assert (len(store), len(frames), frames.shape) == (10, 3, (3, 5, 3))
    assert (frames[:][:, 0, 0].tolist(), frames[np.array([2, 2, 0])][:, 0, 0].tolist()) == ([9, 0, 5], [5, 5, 9])
    assert frames[np.array([False, True, True])][:, 0, 0].tolist() == [0, 5]
    assert frames[-1][:, 0, 0].tolist() == frames[2:][:, 0, 0].tolist() == [5]
    assert frames[np.array([], int)].shape == (0, 5, 3)
    for rows in np.split(order, [3, 6, 9]):
        np.testing.assert_array_equal(store.frames(TEN)[rows], np.load(tmp_path / "frames.npy")[rows])
    statistics = store.statistics([TEN[1], TEN[0]], ["bank", "conv"])  # columns side by side, in the order asked
    assert statistics[:].tolist() == [[108, 100, 101], [8, 0, 1]]
    assert (statistics.shape, store.width(["bank", "conv"]), store.statistics(TEN).shape) == ((2, 3), 3, (10, 9))


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "float32"), (np.inf, "float32"), (7e4, "float16")])
def test_a_value_that_is_no_number_or_too_large_is_refused_with_its_window(tmp_path, value, dtype):
    writer = StoreWriter(tmp_path, TEN, DESCRIPTION | {"dtype": dtype}, 4)
    bad = tensors(slice(4, 8))
    bad["frames"][2, 1, 1] = value
    refused(f"clip6@0: its frames hold NaN, infinity or more than {dtype}", writer.write, slice(4, 8), bad)
    assert slice(4, 8) in writer.missing()


@pytest.mark.parametrize("left", [0, 5, 100, -8])
@pytest.mark.parametrize("name", ["statistics.npy", "index.parquet", "store.json"])
def test_a_file_that_was_cut_short_is_refused_by_name(tmp_path, name, left):
    path = fill(tmp_path) / name
    path.write_bytes(path.read_bytes()[:left])
    refused(name, Store, tmp_path)


def test_what_is_not_there_is_named_and_a_store_of_other_windows_or_another_encoder_not_taken_for_ours(tmp_path):
    store = Store(fill(tmp_path / "a"))
    refused(r"1 windows have no embedding, e\.g\. nobody@0; run 03_embed again", store.frames, [TEN[0], "nobody@0"])
    refused("no part 'layer:7' in this store, there are conv, layer:0, layer:1, ", store.statistics, TEN, ["layer:7"])
    bare = Store(fill(tmp_path / "b", shapes={"statistics": [9]}, feature=""))
    assert not (tmp_path / "b" / "frames.npy").exists()
    refused(r"holds no frames; name embed\.feature", bare.frames, TEN)
    changes = [{"ids": TEN[:9]}, {"ids": [*TEN[:9], "other"]}, {"block": 5}, {"dtype": "float16"}, {"encoder": "other"}]
    for change in [*changes, {"feature": "conv"}]:
        refused("holds embeddings of another kind; delete it", fill, tmp_path / "a", **change)
