import numpy as np
import pytest
from checks import refused

from lib.store import Store, StoreWriter

IDS = [f"corpus:clip{k}@0" for k in range(10)]
PARTS = {"conv": [0, 2], "layer:0": [2, 5], "layer:1": [5, 8], "bank": [8, 9]}
DESCRIPTION = {"encoder": "none", "feature": "emission", "dtype": "float32", "parts": PARTS}
DESCRIPTION |= {"shapes": {"statistics": [9], "frames": [5, 3]}}


def tensors(rows):
    """Values from which row and column can be told: statistics (n, 9) hold 100 row + column, frames (n, 5, 3) the row."""
    numbers = np.arange(rows.start, rows.stop)
    frames = numbers[:, None, None] + np.zeros((1, 5, 3))
    return {"statistics": 100 * numbers[:, None] + np.arange(9.0), "frames": frames}


def fill(folder, block=4, ids=IDS, **changes):
    """A finished store of the ten windows in blocks of four; its folder."""
    writer = StoreWriter(folder, ids, DESCRIPTION | changes, block)
    for rows in writer.missing():
        writer.write(rows, tensors(rows))
    writer.finish()
    return folder


def test_a_store_gives_back_what_was_put_in_by_id_and_in_the_order_asked(tmp_path):
    store, order = Store(fill(tmp_path)), np.random.default_rng(0).permutation(10)
    frames = store.frames([IDS[9], IDS[0], IDS[5]])
    assert (len(store), len(frames), frames.shape) == (10, 3, (3, 5, 3))
    assert (frames[:][:, 0, 0].tolist(), frames[np.array([2, 2, 0])][:, 0, 0].tolist()) == ([9, 0, 5], [5, 5, 9])
    assert frames[np.array([False, True, True])][:, 0, 0].tolist() == [0, 5]
    assert frames[-1][:, 0, 0].tolist() == frames[2:][:, 0, 0].tolist() == [5]
    assert frames[np.array([], int)].shape == (0, 5, 3)
    for rows in np.split(order, [3, 6, 9]):
        np.testing.assert_array_equal(store.frames(IDS)[rows], np.load(tmp_path / "frames.npy")[rows])
    statistics = store.statistics([IDS[1], IDS[0]], ["bank", "conv"])  # columns side by side, in the order asked
    assert statistics[:].tolist() == [[108, 100, 101], [8, 0, 1]]
    assert (statistics.shape, store.width(["bank", "conv"]), store.statistics(IDS).shape) == ((2, 3), 3, (10, 9))


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "float32"), (np.inf, "float32"), (7e4, "float16")])
def test_a_value_that_is_no_number_or_too_large_is_refused_with_its_window(tmp_path, value, dtype):
    writer = StoreWriter(tmp_path, IDS, DESCRIPTION | {"dtype": dtype}, 4)
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
    refused(r"1 windows have no embedding, e\.g\. nobody@0; run 03_embed again", store.frames, [IDS[0], "nobody@0"])
    refused("no part 'layer:7' in this store, there are conv, layer:0, layer:1, ", store.statistics, IDS, ["layer:7"])
    bare = Store(fill(tmp_path / "b", shapes={"statistics": [9]}, feature=""))
    assert not (tmp_path / "b" / "frames.npy").exists()
    refused(r"holds no frames; name embed\.feature", bare.frames, IDS)
    changes = [{"ids": IDS[:9]}, {"ids": [*IDS[:9], "other"]}, {"block": 5}, {"dtype": "float16"}, {"encoder": "other"}]
    for change in [*changes, {"feature": "conv"}]:
        refused("holds embeddings of another kind; delete it", fill, tmp_path / "a", **change)
