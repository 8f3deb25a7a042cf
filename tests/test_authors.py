import io
import os
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from chain_runner import run_module
from checks import killed_at, refused, write_file

from lib import paths, stages
from lib.corpora import authors
from lib.corpora.authors import import_pickles, read_items, read_pickle
from lib.store import Store, StoreWriter
from lib.tables import load_table
from lib.tasks import load_tasks

AGES = ["teens", "twenties", "fourties", ""]


def published(count=6, seed=0):
    """A list of sets as the authors pickled them, and its tensors in order."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(1, 149, 32, generator=generator) for _ in range(count)]
    return [{tensor, AGES[k % 4], ["male", "female"][k % 2]} for k, tensor in enumerate(tensors)], tensors


def write(path, content):
    return write_file(path, content if isinstance(content, bytes) else pickle.dumps(content))


@pytest.mark.parametrize("protocol", range(6))
def test_the_authors_lists_of_sets_are_read_to_the_bit_in_every_protocol(tmp_path, protocol):
    entries, tensors = published()
    items = read_items(write(tmp_path / "a.pkl", pickle.dumps(entries, protocol=protocol)))
    for k, (item, tensor) in enumerate(zip(items, tensors, strict=True)):
        assert (item["age_raw"], item["gender_raw"]) == (AGES[k % 4], ["male", "female"][k % 2])
        assert np.array_equal(item["frames"], tensor[0].numpy())
    base = torch.arange(60.0).reshape(3, 4, 5)
    views = [base[1], base.transpose(0, 2), base[:, ::2, 1:], base.half(), base.double(), base[:0], base[0, 0, 0]]
    for mine, view in zip(read_pickle(pickle.dumps(views, protocol=protocol)), views, strict=True):
        assert torch.equal(mine, view)


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


REBUILD, LOAD, TOUCH = torch._utils._rebuild_tensor_v2, torch.storage._load_from_bytes, Call(os.system, "touch hostile")


def stored(content) -> bytes:
    """A storage as torch.save's old format writes it; here of anything."""
    torch.save(content, buffer := io.BytesIO(), _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def nested(content) -> bytes:
    """A list with a tensor whose storage bytes are `content`."""
    return pickle.dumps([{Call(REBUILD, Call(LOAD, content), 0, (1,), (1,), False, {})}])


FOUR = stored(torch.UntypedStorage(16))
MEGABYTE = b"\x80\x04](ctorch.storage\n_load_from_bytes\n\x94B" + (10**6).to_bytes(4, "little") + bytes(10**6) + b"\x94"
HOSTILE = {
    "os.system": pickle.dumps([TOUCH]), "builtins.getattr": pickle.dumps([Call(getattr, "x", "upper")]),
    "numpy array": pickle.dumps([np.zeros(3)]), "BUILD": b"]}b.", "INST": b"(S'touch hostile'\nios\nsystem\n.",
    "PERSID": b"Px\n.", "NEWOBJ": b"cbuiltins\nset\n)\x81.", "EXT1": b"\x82\x01.", "dictionary": pickle.dumps([{"a": 1}]),
    "calling a string": b"X\x01\x00\x00\x00a)R.", "a name that is no text": b"]]\x93.", "no list": pickle.dumps("text"),
    "nested os.system": nested(pickle.dumps(TOUCH)), "nested in the storage": nested(stored(TOUCH)),
    "a storage that is none": nested(stored([1, 2])), "archive in a storage": nested(b"PK\x03\x04"),
    "cut storage": nested(FOUR[:-1]), "storage of text": pickle.dumps([Call(LOAD, "text")]), "no stop": b"\x80\x04]",
    "mark missing": b"]e.", "unknown opcode": b"\xff\xfe.", "empty": b"", "many digits": b"I" + b"9" * 10_000 + b"\n.",
    "eight exabytes": b"\x8e" + bytes(7) + b"@abc.", "far memo": b"]r\xfe\xff\xff\xff0.",
    "deep": b"(" * 300_000 + b"t" * 300_000 + b"K\x01K\x02s.", "too many instructions": b"]" * 200_000 + b".",
    "one storage often": MEGABYTE + b"\x85R" + b"h\x00h\x01\x85R" * 10_000 + b"e.",
    "one list often": b"](" + b"N" * 50_000 + b"e\x94(" + b"cbuiltins\nset\nh\x00\x85R" * 5_000 + b"l.",
}  # fmt: skip
REACHING = [  # offset, size, stride of tensors that would reach beyond a storage of four numbers
    (4, (1,), (1,)), (0, (5,), (1,)), (0, (2, 2), (3, 1)), (-1, (1,), (1,)), (0, (2,), (-1,)), (0, (1.0,), (1,)),
    (0, (2, 2), (1,)), (0, (10**6, 10**6), (0, 0)),
]  # fmt: skip
FLOATS = torch.TypedStorage(wrap_storage=torch.UntypedStorage(16), dtype=torch.float32, _internal=True)
STORAGE = Call(LOAD, stored(FLOATS))
HOSTILE |= {str(shape): pickle.dumps([Call(REBUILD, STORAGE, *shape, False, None)]) for shape in REACHING}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_pickle_that_asks_for_more_is_refused_and_nothing_runs(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(r"bad.pkl: .*; it is not read", read_items, write(tmp_path / "bad.pkl", content))
    assert os.listdir(tmp_path) == ["bad.pkl"]
    assert read_pickle(pickle.dumps(Call(REBUILD, STORAGE, 0, (2, 2), (2, 1), False, None))).shape == (2, 2)


def test_entries_of_another_kind_are_told_apart_one_by_one(tmp_path):
    plain = torch.zeros(1, 2, 3)
    entries = [
        ({"male", "teens"}, "not one tensor and words"), ([plain, plain + 1], "not one tensor and words"),
        ([plain, 1.5], "not one tensor and words"), ({torch.zeros(3)}, "tensor of another shape: [3]"),
        ({torch.full((1, 2, 3), torch.nan), "male"}, "values that are no numbers"), ("male", "not one tensor and words"),
        ({plain, "male", "female"}, "words that are no age and gender: "), ([plain, 10**500], "not one tensor and words"),
        ({plain, "male", "Mars"}, "words that are no age and gender: "), ([plain] + ["m"] * 3, "not one tensor and words"),
        ([plain, 25], "words that are no age and gender: 25"),
    ]  # fmt: skip
    *bad, good, blank = read_items(write(tmp_path / "a.pkl", [*(e for e, _ in entries), {plain, 20, "m"}, {plain, ""}]))
    assert all(reason.startswith(words) for reason, (_, words) in zip(bad, entries, strict=True)), bad
    assert [*good.values()][1:] + [*blank.values()][1:] == ["20", "m", "", ""]


def test_imported_pickles_stand_where_training_finds_them(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    refused("give at least one", import_pickles, [], "authors")
    refused("none of 1 entries can", import_pickles, [write(tmp_path / "odd.pkl", ["no"])], "authors")
    for number in range(3):
        write(tmp_path / f"batch{number}.pkl", published(5, seed=number)[0])
    entries = published(3, seed=2)[0]
    write(tmp_path / "odd.pkl", [{torch.zeros(1, 7, 32), "male", "teens"}, "nothing", *entries, *entries])
    monkeypatch.setattr(authors, "StoreWriter", lambda *given: StoreWriter(*given, block=4))
    with killed_at(2, StoreWriter, "write"):  # it goes on
        import_pickles(tmp_path.glob("*.pkl"), "authors")
    assert import_pickles(tmp_path.glob("*.pkl"), "authors") == {"files": 4, "windows": 15, "dropped": 8}
    names = ("01_download", "02_segment", "03_embed")
    downloaded, segmented, embedded = (stages.find_stage(name, "authors") for name in names)
    clips = load_table(downloaded.path("clips.parquet"), "clips")
    genders, decades = (clips[name].fillna(0).value_counts().to_dict() for name in ("gender", "age_decade"))
    assert (clips["speaker_id"].nunique(), genders) == (3, {"male": 9, "female": 6})
    assert decades == {10: 6, 20: 3, 40: 3, 0: 3}
    ids = load_table(segmented.path("windows.parquet"), "windows")["window_id"]
    tensors = [tensor for seed in range(3) for tensor in published(5, seed)[1]]
    store, frames = Store(embedded.folder), torch.cat(tensors).numpy()
    assert np.array_equal(store.frames(ids)[:], frames)
    statistics = np.concatenate([frames.mean(axis=1), frames.std(axis=1)], axis=1)
    np.testing.assert_allclose(store.statistics(ids)[:], statistics, atol=1e-5)
    assert [task.name for task in load_tasks(downloaded)] == ["gender", "age"]
    lost = load_table(downloaded.path("ledger.parquet"), "ledger")["reason"].value_counts().to_dict()
    assert lost == {"the same values again": 6, "tensor of another shape": 1, "not one tensor and words": 1}


def test_imported_embeddings_are_trained_on_and_scored_and_what_needs_sound_is_left_out_and_said(tmp_path):
    told = run_module(tmp_path, "lib.run", "params/authors.yaml", code=2).stderr
    assert "starts from imported pickles: python -m lib.corpora.authors FOLDER --run authors" in told
    generator = torch.Generator().manual_seed(0)
    for number in range(24):  # classes differ a little
        words = ["teens", "twenties", "fifties"][number % 3], ["male", "female"][number % 2]
        offset = torch.tensor([float(number % 2)] * 16 + [float(number % 3 == 0)] * 16)
        entries = [{torch.randn(1, 149, 32, generator=generator) + offset, *words} for _ in range(5)]
        write(tmp_path / "pickles" / f"batch_{number}.pkl", entries)
    told = run_module(tmp_path, "lib.corpora.authors", str(tmp_path / "pickles")).stdout
    assert told == "24 files, 120 windows, 0 dropped\n"
    changes = ["train.epochs=1", "train.learning_rate=0.01", "train.width=0.03", "evaluate.draws=100"]
    run_module(tmp_path, "lib.run", "params/authors.yaml", *(f"--set={change}" for change in changes))
    scores = pd.DataFrame(paths.load_json(tmp_path / "reports/authors/metrics.json")["scores"])
    scores = scores.query("protocol == 'speaker' and level == 'window' and metric == 'uar' and subset == 'all'")
    assert {*scores["model"]} == {"paper", "linear", "majority"}  # none that listens
    assert scores.loc[scores["model"] == "linear", "value"].min() > 0.8
    assert not (tmp_path / "data/authors/models").exists()
    for page in ("index", "05_evaluate"):
        text = (tmp_path / f"reports/authors/{page}.html").read_text()
        assert "as the paper&#39;s authors published them, without their sound" in text, page
