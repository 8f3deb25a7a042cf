"""Archives: only the wanted members, none outside the folder, nothing half-written."""

import io
import stat
import tarfile
import zipfile

import numpy as np
import pytest

from lib.corpora.archives import extract_members, join_parts

FILES = {
    "a/one.tsv": b"1",
    "a/clips/x.mp3": np.random.default_rng(0).bytes(50_000),
    "a/clips/y.mp3": b"y" * 2000,
    "./b/z": b"",
}


def make_tar(path, files=FILES, mode="w:gz", **odd):
    with tarfile.open(path, mode) as tar:
        for name, body in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
        for name, (kind, link) in odd.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            tar.addfile(member)
    return path


def make_zip(path, files=FILES):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return path


@pytest.mark.parametrize("kind", ["w:gz", "w", "w:bz2", "w:xz", "zip"])
def test_wanted_members_are_unpacked_and_others_are_not(tmp_path, kind):
    path = make_zip(tmp_path / "x") if kind == "zip" else make_tar(tmp_path / "x", mode=kind)
    files = extract_members(path, tmp_path / "out", lambda name: not name.endswith("y.mp3"), progress=False)
    found = {
        p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()
    }
    assert found == {"a/one.tsv": b"1", "a/clips/x.mp3": FILES["a/clips/x.mp3"], "b/z": b""}
    assert len(files) == 3


def test_an_interrupted_extraction_goes_on_without_rewriting(tmp_path):
    path = make_tar(tmp_path / "x.tar.gz")
    extract_members(path, tmp_path / "out", lambda name: "one" in name, progress=False)
    (tmp_path / "out/a/clips").mkdir()
    (tmp_path / "out/a/clips/y.mp3").write_bytes(b"cut")
    before = (tmp_path / "out/a/one.tsv").stat().st_mtime_ns
    extract_members(path, tmp_path / "out", progress=False)
    assert (tmp_path / "out/a/one.tsv").stat().st_mtime_ns == before
    assert (tmp_path / "out/a/clips/y.mp3").read_bytes() == FILES["a/clips/y.mp3"]


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a/..", "C:\\evil", "..\\evil"])
@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_members_that_lead_out_of_the_folder_are_refused(tmp_path, name, make):
    (tmp_path / "in").mkdir()
    path = make(tmp_path / "in" / "x", {name: b"evil"})
    with pytest.raises(ValueError, match="leads out of the folder"):
        extract_members(path, tmp_path / "in" / "out", progress=False)
    assert not [p for p in tmp_path.rglob("*evil*")]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    path = make_tar(tmp_path / "x.tar", {}, "w", bad=(kind, "/etc/passwd"))
    with pytest.raises(ValueError, match="'bad' is a link, a device"):
        extract_members(path, tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "bad").is_symlink()
    assert extract_members(path, tmp_path / "out", lambda name: name != "bad", progress=False) == []


def test_links_in_a_zip_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        link = zipfile.ZipInfo("bad")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="is a link"):
        extract_members(tmp_path / "x.zip", tmp_path / "out", progress=False)


def test_a_link_that_waits_in_the_folder_is_not_followed(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="leads out"):
        extract_members(make_tar(tmp_path / "x.tar.gz"), tmp_path / "out", progress=False)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("kind", ["w:gz", "w", "zip"])
def test_archives_cut_short_are_named_and_leave_no_half_file(tmp_path, share, kind):
    path = make_zip(tmp_path / "x.zip") if kind == "zip" else make_tar(tmp_path / "x.tar.gz", mode=kind)
    whole = path.read_bytes()
    whole = whole[: 50_000 + 2000] if kind == "w" else whole
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"x\.(zip|tar\.gz): (damaged|cut short)"):
        extract_members(path, tmp_path / "out", progress=False)
    for file in (p for p in (tmp_path / "out").rglob("*") if p.is_file()):
        assert file.read_bytes() == FILES[file.relative_to(tmp_path / "out").as_posix()]


def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such archive"):
        extract_members(tmp_path / "no.tar", tmp_path / "out")


def test_parts_are_joined_in_order_and_checked(tmp_path):
    import hashlib

    for name, body in (("p_partb", b"two"), ("p_parta", b"one")):
        (tmp_path / name).write_bytes(body)
    parts = list(tmp_path.glob("p_part*"))
    joined = join_parts(parts, tmp_path / "p.zip", md5=hashlib.md5(b"onetwo").hexdigest())
    assert joined.read_bytes() == b"onetwo"
    with pytest.raises(ValueError, match="missing or damaged"):
        join_parts(parts[:1], tmp_path / "q.zip", md5=hashlib.md5(b"onetwo").hexdigest())
    assert not (tmp_path / "q.zip").exists()
    with pytest.raises(ValueError, match="no parts"):
        join_parts([], tmp_path / "r.zip")
