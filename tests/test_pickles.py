import os
import pickle
import resource
import struct

import numpy as np
import pytest
import torch

from lib import paths, stages
from lib.corpora.authors import Tensor, UnsafePickle, import_pickles, read_items, read_pickle
from lib.store import Store
from lib.tables import load_table

AGES = ["teens", "twenties", "fourties", ""]


def published(count=6, seed=0):
    """A list of sets as the authors pickled them, and its tensors in order."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(1, 149, 32, generator=generator) for _ in range(count)]
    return [{tensor, AGES[k % 4], ["male", "female"][k % 2]} for k, tensor in enumerate(tensors)], tensors


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    return tmp_path


@pytest.mark.parametrize("protocol", range(6))
def test_the_authors_lists_of_sets_are_read_to_the_bit_in_every_protocol(tmp_path, protocol):
    entries, tensors = published()
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(entries, protocol=protocol))
    found = [item for _, item in read_items(path)]
    for k, (item, tensor) in enumerate(zip(found, tensors)):
        assert (item.age, item.gender) == (AGES[k % 4], ["male", "female"][k % 2])
        assert np.array_equal(item.frames, tensor[0].numpy())


def test_views_shared_storages_and_other_precisions_are_read_as_torch_would():
    base = torch.arange(60.0).reshape(3, 4, 5)
    tensors = [
        base[1],
        base.transpose(0, 2),
        base[:, ::2, 1:],
        base.half(),
        base.double(),
        torch.zeros(0, 3),
        base[0, 0, 0],
    ]
    tensors.append(torch.nn.Parameter(base).detach().requires_grad_())
    found = read_pickle(pickle.dumps(tensors))
    for mine, tensor in zip(found, tensors):
        assert isinstance(mine, Tensor)
        assert np.array_equal(mine.values, tensor.detach().float().numpy())


def test_plain_containers_and_numbers_come_through():
    plain = [
        1,
        -7,
        2**70,
        1.5,
        True,
        None,
        "ö",
        b"bytes",
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 3, 4),
        {"a": [1], "b": ()},
        [],
    ]
    for protocol in range(6):
        assert read_pickle(pickle.dumps(plain, protocol=protocol)) == plain
    assert sorted(read_pickle(pickle.dumps({3, 1, 2}))) == [1, 2, 3]


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def nested(content):
    """A list with a tensor whose storage bytes are `content`."""
    return pickle.dumps(
        [
            {
                Call(
                    torch._utils._rebuild_tensor_v2,
                    Call(torch.storage._load_from_bytes, content),
                    0,
                    (1,),
                    (1,),
                    False,
                    {},
                )
            }
        ]
    )


def storage_bytes(**changes):
    """What torch.save's old format makes of four floats, with some of its parts changed."""
    parts = {"magic": 0x1950A86A20F9469CFC6C, "protocol": 1001, "system": {"little_endian": True}} | changes
    head = b"".join(pickle.dumps(parts[name], protocol=2) for name in ("magic", "protocol", "system"))
    kind = parts.get("kind", b"ctorch\nFloatStorage\n")
    count = parts.get("count", 4)
    body = (
        b"\x80\x02(X\x07\x00\x00\x00storage"
        + kind
        + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        + b"J"
        + struct.pack("<i", count)
    )
    body += b"NtQ." + pickle.dumps(parts.get("keys", ["0"]), protocol=2)
    return head + body + struct.pack("<q", parts.get("stored", count)) + parts.get("values", b"\x00" * 16)


HOSTILE = {
    "os.system": pickle.dumps([Call(os.system, "touch hostile")]),
    "builtins.eval": pickle.dumps([Call(eval, "open('hostile', 'w')")]),
    "builtins.getattr": pickle.dumps([Call(getattr, "x", "upper")]),
    "torch.load": pickle.dumps([Call(torch.load, "file")]),
    "numpy array": pickle.dumps([np.zeros(3)]),
    "a class of our own": pickle.dumps([Tensor]),
    "an object": pickle.dumps([Call]),
    "INST": b"(S'touch hostile'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch hostile'\no.",
    "NEWOBJ": b"cbuiltins\nset\n)\x81.",
    "BUILD": b"]}b.",
    "EXT1": b"\x82\x01.",
    "PERSID": b"Px\n.",
    "BINPERSID": b"]Q.",
    "calling a string": b"X\x01\x00\x00\x00a)R.",
    "calling a storage type": b"ctorch\nFloatStorage\n)R.",
    "a name that is no text": b"]]\x93.",
    "a name that takes for ever to print": b"K\x01q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"X\x01\x00\x00\x00a\x93.",
    "a name that is too deep to print": b"K\x01" + b"\x85" * 5000 + b"X\x01\x00\x00\x00a\x93.",
    "nested os.system": nested(pickle.dumps(Call(os.system, "touch hostile"))),
    "nested in the storage": nested(storage_bytes(system=Call(os.system, "touch hostile"))),
    "nested load": nested(pickle.dumps(Call(torch.storage._load_from_bytes, b"x"))),
    "wrong magic": nested(storage_bytes(magic=1)),
    "wrong system": nested(storage_bytes(system=["little_endian"])),
    "wrong keys": nested(storage_bytes(keys=["1"])),
    "wrong count": nested(storage_bytes(count=5)),
    "negative count": nested(storage_bytes(count=-1)),
    "wrong type": nested(storage_bytes(kind=b"ctorch\nQInt8Storage\n")),
    "type that is a call": nested(storage_bytes(kind=b"cos\nsystem\n")),
    "cut values": nested(storage_bytes(values=b"\x00" * 15)),
    "storage of text": pickle.dumps([Call(torch.storage._load_from_bytes, "text")]),
    "no stop": b"\x80\x04]",
    "stop on nothing": b".",
    "pop on nothing": b"a.",
    "mark missing": b"]e.",
    "memo missing": b"h\x07.",
    "unknown opcode": b"\xff\xfe.",
    "cut text": b"X\xff\xff\xff\x7fabc",
    "eight exabytes": b"\x8e" + struct.pack("<Q", 2**62) + b"abc.",
    "long integer of no digits": b"I" + b"9" * 10_000 + b"\n.",
    "unhashable key": b"}]]s.",
    "items for a number": b"K\x01K\x02a.",
    "zip": b"PK\x03\x04rest",
    "empty": b"",
}  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_pickle_that_asks_for_more_is_refused_and_nothing_runs(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pkl"
    path.write_bytes(content)
    with pytest.raises(UnsafePickle, match=r"bad.pkl: .*; it is not read"):
        list(read_items(path))
    assert os.listdir(tmp_path) == ["bad.pkl"]


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (4, (1,), (1,)),
        (0, (5,), (1,)),
        (0, (2, 2), (3, 1)),
        (-1, (1,), (1,)),
        (0, (2,), (-1,)),
        (0, (1.0,), (1,)),
        (0, (2, 2), (1,)),
    ],
)
def test_a_tensor_cannot_reach_beyond_its_storage(offset, size, stride):
    storage = Call(torch.storage._load_from_bytes, storage_bytes())
    with pytest.raises(UnsafePickle):
        read_pickle(pickle.dumps(Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})))
    whole = Call(torch._utils._rebuild_tensor_v2, storage, 0, (2, 2), (2, 1), False, {})
    assert read_pickle(pickle.dumps(whole)).values.shape == (2, 2)


def bombs():
    """Small files that would fill the memory."""
    storage = Call(torch.storage._load_from_bytes, storage_bytes())
    wide = Call(torch._utils._rebuild_tensor_v2, storage, 0, (1000, 1000, 9), (0, 0, 0), False, {})
    yield "wide tensors", pickle.dumps([wide] * 3)
    loaded = b"\x80\x04](ctorch.storage\n_load_from_bytes\n\x94B" + struct.pack("<i", 10**6) + b"\x00" * 10**6 + b"\x94"
    yield "one storage often", loaded + b"\x85R" + b"h\x00h\x01\x85R" * 10_000 + b"e."
    yield "far memo", b"]r" + struct.pack("<I", 2**32 - 2) + b"0]r" + struct.pack("<I", 2**31) + b"\xff."
    many = b"\x80\x04](" + b"N" * 100_000 + b"e\x94("
    yield "one list copied often", many + b"cbuiltins\nset\nh\x00\x85R" * 10_000 + b"l."
    yield "dictionaries", b"}" * 5_000_000 + b"."
    yield "keys of one place", pickle.dumps({k * (2**61 - 1): 0 for k in range(300)})
    yield "deep", b"(" * 300_000 + b"t" * 300_000 + b"K\x01K\x02s."


@pytest.mark.parametrize("content", [content for _, content in bombs()], ids=[name for name, _ in bombs()])
def test_a_small_file_cannot_fill_the_memory(content):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnsafePickle):
        read_pickle(content)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_an_entry_repeated_many_times_counts_once(tmp_path):
    entries, _ = published(2)
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(entries + entries[:1] * 100))
    items = [item for _, item in read_items(path)]
    assert items[2:] == ["the same tensor again"] * 100


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"male", "teens"}, "not one tensor and words"),
        ([torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)], "not one tensor and words"),
        ([torch.zeros(1, 2, 3), 1.5], "not one tensor and words"),
        ({torch.zeros(3)}, r"tensor of shape \[3\]"),
        ({torch.full((1, 2, 3), torch.nan), "male"}, "values that are no numbers"),
        ({torch.zeros(1, 2, 3), "male", "female"}, "words that are no age and gender: "),
        ({torch.zeros(1, 2, 3), "male", "Mars"}, "words that are no age and gender: "),
        ("male", "no set"),
        ([torch.zeros(1, 2, 3), 10**5000], "not one tensor and words"),
        ([torch.zeros(1, 2, 3)] + ["male"] * 3, "not one tensor and words"),
    ],
)
def test_entries_of_another_kind_are_told_apart_one_by_one(tmp_path, entry, reason):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps([entry, {torch.zeros(1, 2, 3), "male", "teens"}]))
    (_, bad), (_, good) = read_items(path)
    import re

    assert re.match(reason, bad)
    assert good.frames.shape == (2, 3)


def test_decades_as_numbers_and_blank_words_are_understood(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(
        pickle.dumps([{torch.ones(1, 2, 3), 20, "m"}, {torch.ones(1, 2, 3), ""}, {torch.ones(1, 2, 3), 25}])
    )
    first, second, third = (item for _, item in read_items(path))
    assert (first.age, first.gender) == ("20", "m")
    assert (second.age, second.gender) == ("", "")
    assert third == "words that are no age and gender: 25"


def test_imported_pickles_stand_where_training_finds_them(data):
    for number in range(3):
        (data / f"batch{number}.pkl").write_bytes(pickle.dumps(published(5, seed=number)[0]))
    (data / "odd.pkl").write_bytes(pickle.dumps([{torch.zeros(1, 7, 32), "male", "teens"}, "nothing"]))
    counts = import_pickles(data.glob("*.pkl"), "authors", shard_items=4)
    assert counts == {"files": 4, "windows": 15, "dropped": 2}
    downloaded, segmented, embedded = (
        stages.find_stage(name, "authors") for name in ("01_download", "02_segment", "03_embed")
    )
    clips = load_table(downloaded.path("clips.parquet"), "clips")
    windows = load_table(segmented.path("windows.parquet"), "windows")
    store = Store(embedded.folder, checksums=True)
    assert clips["speaker_id"].nunique() == 3
    assert clips["gender"].value_counts().to_dict() == {"male": 9, "female": 6}
    assert clips["age_decade"].value_counts(dropna=False).to_dict() == {10: 6, 20: 3, 40: 3, clips["age_decade"][3]: 3}
    frames = store.features("frames", windows["window_id"])
    assert frames.shape == (15, 149, 32)
    assert np.array_equal(frames[5][0], published(5, seed=1)[1][0][0].numpy())
    assert len(load_table(downloaded.path("ledger.parquet"), "ledger")) == 2


def test_windows_that_two_files_share_count_once(data):
    for number in range(2):
        (data / f"batch{number}.pkl").write_bytes(pickle.dumps(published(5, seed=0)[0]))
    assert import_pickles(data.glob("*.pkl"), "authors") == {"files": 2, "windows": 5, "dropped": 5}
    ledger = load_table(stages.find_stage("01_download", "authors").path("ledger.parquet"), "ledger")
    assert set(ledger["reason"]) == {"the same values again"}


def test_an_import_without_anything_to_use_is_refused(data):
    with pytest.raises(ValueError, match="give at least one"):
        import_pickles([], "authors")
    (data / "odd.pkl").write_bytes(pickle.dumps(["nothing"]))
    with pytest.raises(ValueError, match="none of 1 entries can be used"):
        import_pickles([data / "odd.pkl"], "authors")
