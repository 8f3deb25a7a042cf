import json
import mmap
import resource

import numpy as np
import pytest
from safetensors import safe_open

from lib import store as store_module
from lib.store import (
    MAPS,
    Store,
    find_tensor,
    finish_store,
    map_tensor,
    missing_shards,
    read_header,
    save_shard,
    shard_facts,
    shard_path,
)

IDS = [f"corpus:clip{k}@0" for k in range(10)]


def tensors(first, last, dtype=np.float32):
    """Values from which the window's number can be told: frames [n, 5, 3] and layers [n, 2, 4]."""
    number = np.arange(first, last, dtype=dtype).reshape(-1, 1, 1)
    return {"frames": number + np.zeros((1, 5, 3), dtype), "layers": number / 4 + np.zeros((1, 2, 4), dtype)}


def make_store(folder, dtype=np.float32, made="x", ids=IDS, size=4):
    """A finished store of the ten windows in shards of four; its folder."""
    for shard, first in enumerate(range(0, len(ids), size)):
        part = ids[first : first + size]
        save_shard(folder, shard, part, tensors(first, first + len(part), dtype), made)
    finish_store(folder, -(-len(ids) // size), {"encoder": "none"})
    return folder


def test_a_store_gives_back_what_was_put_in_by_id_and_in_the_order_asked(tmp_path):
    store = Store(make_store(tmp_path), checksums=True)
    found = store.features("frames", [IDS[9], IDS[0], IDS[5]])
    assert (len(store), len(found), found.shape) == (10, 3, (3, 5, 3))
    assert found.all()[:, 0, 0].tolist() == [9, 0, 5]
    assert found[np.array([2, 2, 0])][:, 0, 0].tolist() == [5, 5, 9]
    assert found[np.array([False, True, True])][:, 0, 0].tolist() == [0, 5]
    assert found[-1][:, 0, 0].tolist() == found[2:][:, 0, 0].tolist() == [5]
    assert found[[]].shape == (0, 5, 3)


def test_half_precision_is_stored_as_such_and_read_as_float32(tmp_path):
    store = Store(make_store(tmp_path, np.float16))
    assert store.describe()["stored as"].tolist() == ["F16", "F16"]
    assert store.describe()["shape"].tolist() == ["5 x 3", "2 x 4"]
    assert store.features("layers", IDS).all().dtype == np.float32
    assert shard_path(tmp_path, 0).stat().st_size < 4 * (5 * 3 + 2 * 4) * 2 + 1000


def test_reading_a_row_maps_the_file_and_does_not_load_it(tmp_path):
    count, width = 2000, 2000
    save_shard(tmp_path, 0, [f"w{k}" for k in range(count)], {"frames": np.ones((count, 5, width), np.float32)})
    finish_store(tmp_path, 1)
    features = Store(tmp_path).features("frames", ["w7"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert features[0].sum() == 5 * width
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB, of 80 MB on disk
    assert isinstance(map_tensor(shard_path(tmp_path, 0), "frames").base, mmap.mmap)


def test_more_shards_than_a_process_may_open_are_read(tmp_path):
    ids = [f"w{k}" for k in range(3 * MAPS)]
    features = Store(make_store(tmp_path, ids=ids, size=1)).features("frames", ids)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    import psutil

    resource.setrlimit(resource.RLIMIT_NOFILE, (psutil.Process().num_fds() + MAPS + 20, hard))
    try:
        assert features.all()[:, 0, 0].tolist() == list(range(len(ids)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_each_header_is_parsed_once_however_rows_are_drawn(tmp_path, monkeypatch):
    ids = [f"w{k}" for k in range(200)]
    make_store(tmp_path, ids=ids, size=2)
    parsed = []
    monkeypatch.setattr(store_module, "MAPS", 8)  # far fewer than there are shards: maps come and go
    monkeypatch.setattr(store_module, "read_header", lambda path: parsed.append(path.name) or read_header(path))
    features = Store(tmp_path).features("frames", ids)
    order = np.random.default_rng(0).permutation(200)
    found = [features[order[first : first + 10]][:, 0, 0] for first in range(0, 200, 10)]
    assert np.array_equal(np.concatenate(found), order)
    assert sorted(parsed) == [shard_path(tmp_path, shard).name for shard in range(100)]


def test_the_files_are_plain_safetensors(tmp_path):
    make_store(tmp_path)
    with safe_open(shard_path(tmp_path, 1), "numpy") as file:
        assert sorted(file.keys()) == ["frames", "layers"]
        assert json.loads(file.metadata()["store"])["window_ids"] == IDS[4:8]
        assert shard_facts(shard_path(tmp_path, 1)) == (IDS[4:8], "x")
        assert file.get_tensor("frames")[:, 0, 0].tolist() == [4, 5, 6, 7]


def test_only_shards_that_are_missing_are_asked_for(tmp_path):
    make_store(tmp_path)
    assert missing_shards(tmp_path, IDS, 4, "x") == []
    shard_path(tmp_path, 1).unlink()
    assert missing_shards(tmp_path, IDS, 4, "x") == [1]


@pytest.mark.parametrize("cut", [0, 5, 8, 200, -1])
def test_a_shard_that_was_cut_short_is_made_again(tmp_path, cut):
    path = shard_path(make_store(tmp_path), 2)
    path.write_bytes(path.read_bytes()[:cut])
    assert missing_shards(tmp_path, IDS, 4, "x") == [2]
    assert not path.exists()


def test_shards_of_other_windows_or_of_another_encoder_are_not_taken_for_ours(tmp_path):
    make_store(tmp_path)
    assert missing_shards(tmp_path, [*IDS[:4], "other", *IDS[5:]], 4, "x") == [1]
    assert missing_shards(tmp_path, IDS, 4, "another precision") == [0, 1, 2]
    assert list(tmp_path.glob("shard-*")) == []


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    make_store(tmp_path)
    (tmp_path / ".shard-00001-abc.safetensors").write_bytes(b"half")
    assert missing_shards(tmp_path, IDS[:8], 4, "x") == []
    assert sorted(path.name for path in tmp_path.glob("*shard*")) == [f"shard-0000{k}.safetensors" for k in (0, 1)]


def test_a_shard_is_refused_when_rows_and_ids_part_or_a_value_is_no_number(tmp_path):
    with pytest.raises(ValueError, match="'frames' has 3 rows for 4 windows"):
        save_shard(tmp_path, 0, IDS[:4], tensors(0, 3))
    bad = tensors(0, 4)
    bad["layers"][2, 1, 1] = np.nan
    with pytest.raises(ValueError, match=r"'layers' of window corpus:clip2@0 holds NaN"):
        save_shard(tmp_path, 0, IDS[:4], bad)
    assert list(tmp_path.iterdir()) == []
    save_shard(tmp_path, 0, IDS[:1], {"acoustics": np.array([[np.nan, 1.0]])})


def test_an_open_store_has_been_checked(tmp_path):
    make_store(tmp_path)
    save_shard(tmp_path, 1, IDS[4:7], tensors(4, 7))
    with pytest.raises(ValueError, match=r"shard-00001.safetensors: 3 windows, the index has 4"):
        Store(tmp_path)
    save_shard(tmp_path, 1, IDS[4:8][::-1], tensors(4, 8))
    with pytest.raises(ValueError, match="or others"):
        Store(tmp_path)
    save_shard(tmp_path, 1, IDS[4:8], {name: tensor[..., :2] for name, tensor in tensors(4, 8).items()})
    with pytest.raises(ValueError, match=r"tensor 'frames' is F32 \[4, 5, 2\], not F32 \[4, 5, 3\]"):
        Store(tmp_path)
    shard_path(tmp_path, 1).unlink()
    with pytest.raises(ValueError, match=r"shard-00001.safetensors: not a whole safetensors shard"):
        Store(tmp_path)


def test_a_flipped_bit_is_found_when_checksums_are_asked_for(tmp_path):
    path = shard_path(make_store(tmp_path), 0)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    Store(tmp_path)
    with pytest.raises(ValueError, match=r"shard-00000.safetensors: its bytes have changed"):
        Store(tmp_path, checksums=True)


def test_an_index_without_one_of_its_shards_is_refused(tmp_path):
    make_store(tmp_path)
    description = json.loads((tmp_path / "store.json").read_text())
    del description["sha256"]["shard-00002.safetensors"]
    (tmp_path / "store.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="index and description part"):
        Store(tmp_path)


def test_missing_stores_windows_and_tensors_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no finished store here; run notebooks/03_embed.ipynb"):
        Store(tmp_path)
    store = Store(make_store(tmp_path))
    with pytest.raises(ValueError, match=r"1 windows have no embedding, e.g. nobody@0"):
        store.features("frames", [IDS[0], "nobody@0"])
    with pytest.raises(ValueError, match=r"no tensor 'conv', there are \['frames', 'layers'\]"):
        store.features("conv", IDS)
    with pytest.raises(ValueError, match="no tensor 'conv'"):
        map_tensor(shard_path(tmp_path, 0), "conv")


def test_a_shape_that_its_bytes_do_not_fill_is_refused(tmp_path):
    header = {"x": {"dtype": "F16", "shape": [2, 9], "data_offsets": [0, 10]}}
    with pytest.raises(ValueError, match=r"shape \[2, 9\] has 10 bytes"):
        find_tensor(tmp_path, header | {"__metadata__": {"data_starts": "8"}}, "x")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 8, b"\xff" * 64, (10).to_bytes(8, "little") + b'["a", 1,2]', (2).to_bytes(8, "little") + b"{}x"],
)
def test_files_that_are_no_shard_are_named(tmp_path, content):
    path = tmp_path / "shard-00000.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-00000.safetensors"):
        read_header(path)
