import hashlib
import io
import json
import logging
import os
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from checks import refused, write_file
from local_server import serve
from test_common_voice import V17, make_locale, row
from test_speechocean762 import make_half
from test_voxceleb import write_frames, write_meta

from lib.corpora import common_voice, fetch, speechocean762, voxceleb
from lib.corpora.fetch import download_file, extract_members, unpacking

CONTENT = np.random.default_rng(0).bytes(400_000)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
CHANGES = [{"has_ranges": False}, {"etag": '"v2"'}, {"etag": None}, {"etag": 'W/"v1"'}, {"files": {"/file.bin": b"no"}}]
FILES = {"a/one.tsv": b"1", "a/clips/x.mp3": CONTENT[:50_000], "a/clips/y.mp3": b"y" * 2000, "./b/z": b""}
OUTSIDE = ["../evil", "/evil", "a/../../evil", "a/..", "//evil", "./../evil"]
KINDS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(fetch, "CHUNK_BYTES", 1000)


def get(site, target, known_hash="", **options):
    return download_file(f"{site.url}/file.bin?secret=x", target, known_hash, **({"pause_s": 0.01} | options))


def files_below(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dropped_connection_is_resumed_with_a_range_request_also_by_a_later_run(tmp_path):
    with serve(files={"/file.bin": CONTENT}, drop_after=[100_000, 50_000, 10]) as site:
        told = refused("run again later", get, site, tmp_path / "f", attempts=1)
        assert {*os.listdir(tmp_path)} == {"f.json", "f.part"}
        assert "secret" not in told + (tmp_path / "f.json").read_text()
        get(site, tmp_path / "f", SHA256)
        sent = [(headers.get("range"), headers.get("if-range")) for _, headers in site.requests[:3]]
        assert sent == [(None, None), ("bytes=100000-", '"v1"'), ("bytes=150000-", '"v1"')]
    assert files_below(tmp_path) == {"f": CONTENT}


@pytest.mark.parametrize("change", CHANGES)
def test_what_cannot_be_resumed_is_fetched_from_the_start(tmp_path, change):
    with serve(files={"/file.bin": CONTENT}, drop_after=[100_000]) as site:
        refused("goes on", get, site, tmp_path / "f", attempts=1)
        vars(site).update(change)
        assert get(site, tmp_path / "f").read_bytes() == site.files["/file.bin"]


def test_a_right_file_is_not_fetched_again_a_wrong_one_is_and_of_a_wrong_one_nothing_stays(tmp_path):
    with serve(files={"/file.bin": CONTENT}) as site:
        for content in (CONTENT, b"old"):
            path = get(site, write_file(tmp_path / "f", content), SHA256)
            assert (len(site.requests), path.read_bytes()) == (int(content == b"old"), CONTENT)
        for wrong in ("sha256:" + "0" * 64, "md5:" + "0" * 32):
            refused(f"not the file expected.*{wrong}", get, site, tmp_path / "g", wrong)
    assert os.listdir(tmp_path) == ["f"]


def test_busy_servers_are_tried_again_and_refusals_are_not(tmp_path, monkeypatch):
    with serve(files={"/file.bin": CONTENT}, statuses=[503, 429]) as site:
        get(site, tmp_path / "f")
        assert len(site.requests) == 3
        for status, words in ((401, "password"), (403, "terms"), (404, "no such file"), (410, "removed")):
            site.statuses, site.requests = [status], []
            told = refused(f"{status}.*{words}", get, site, tmp_path / "g")
            assert ("secret" in told, len(site.requests)) == (False, 1)
        site.length = False
        refused("go unnoticed", get, site, tmp_path / "g")
        site.length = True
        monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        refused("GB free", get, site, tmp_path / "g")
    assert os.listdir(tmp_path) == ["f"]


def test_only_https_is_fetched_also_after_a_redirect(tmp_path, monkeypatch):
    for url in ("http://example.org/x", "ftp://example.org/x", "file:///etc/passwd", "//x"):
        refused("only https", download_file, url, tmp_path / "f")
    with serve(redirects={"/file.bin": "/other.bin"}, files={"/other.bin": CONTENT}) as site:
        check = fetch.check_url
        monkeypatch.setattr(fetch, "check_url", lambda hop: check(hop.replace(f"{site.url}/other", "http://other.org")))
        refused("only https", get, site, tmp_path / "f")
    assert os.listdir(tmp_path) == []


def unpack(path, folder):
    with unpacking(folder) as partial:
        extract_members(path, partial)


def make_tar(path, files=FILES, mode="w:gz", kind=tarfile.REGTYPE):
    with tarfile.open(path, mode) as tar:
        for name, body in files.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, "/etc/passwd", len(body)
            tar.addfile(member, io.BytesIO(body))
    return path


@pytest.mark.parametrize("mode", ["w:gz", "w", "w:bz2", "w:xz"])
def test_wanted_members_are_unpacked_and_an_interrupted_unpacking_goes_on(tmp_path, mode):
    path, out = make_tar(tmp_path / "x", mode=mode), tmp_path / "out"
    extract_members(path, out, lambda name: not name.endswith("y.mp3"))
    assert files_below(out) == {"a/one.tsv": b"1", "a/clips/x.mp3": FILES["a/clips/x.mp3"], "b/z": b""}
    write_file(out / "a/one.tsv", b"2")
    write_file(out / "a/clips/y.mp3", b"cut")
    extract_members(path, out)  # the first is of the right size, so it is left alone
    assert files_below(out) == {Path(name).as_posix(): body for name, body in FILES.items()} | {"a/one.tsv": b"2"}


@pytest.mark.parametrize(("name", "kind"), [(name, tarfile.REGTYPE) for name in OUTSIDE] + [("evil", k) for k in KINDS])
def test_members_that_lead_out_of_the_folder_and_links_and_devices_are_refused(tmp_path, name, kind):
    path = make_tar(tmp_path / "x", {name: b"evil" if kind == tarfile.REGTYPE else b""}, kind=kind)
    refused("is a link, a device or leads out of", unpack, path, tmp_path / "in")
    assert os.listdir(tmp_path) == ["x"]
    assert extract_members(path, tmp_path / "in", lambda name: "evil" not in name and name != "a/..") == []


def test_links_that_wait_in_the_folder_and_archives_that_grow_without_end_are_refused(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    refused("leads out", extract_members, make_tar(tmp_path / "x"), tmp_path / "out")
    monkeypatch.setattr(fetch, "SMALL_BYTES", 0)
    path = make_tar(tmp_path / "bomb", {f"{n}.tsv": bytes(10**7) for n in range(4)})
    refused("times its size; do not trust it", unpack, path, tmp_path / "bombed")
    assert {*os.listdir(tmp_path)} == {"bomb", "out", "x"}


@pytest.mark.parametrize("count", [0, 20_000, 48_000])
@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_archives_cut_short_are_named_and_nothing_of_them_is_read(tmp_path, count, mode):
    path = make_tar(tmp_path / "x", mode=mode)
    path.write_bytes(path.read_bytes()[:count])
    refused("x: damaged or cut short", unpack, path, tmp_path / "out")
    assert os.listdir(tmp_path) == ["x"]
    refused("no such archive", extract_members, tmp_path / "no.tar", tmp_path / "out")


@pytest.fixture
def platform(tmp_path, monkeypatch):
    """Mozilla Data Collective, as its documentation describes it."""
    rows = [row(c, 10 * i + n, "af") for i, c in enumerate("ab") for n in range(4)]
    make_locale(tmp_path / "made" / "cv-corpus-25.0-x" / "af", V17, [*rows, row("c", 9, "af", segment="Benchmark")])
    archive = make_tar(tmp_path / "x", files_below(tmp_path / "made")).read_bytes()
    facts = {"filename": "af.tar.gz", "checksum": f"sha256:{hashlib.sha256(archive).hexdigest()}"}
    monkeypatch.setenv("MDC_API_KEY", "k3y-of-mine")
    with serve(files={"/af.tar.gz": archive}) as site:
        facts["downloadUrl"] = f"{site.url}/af.tar.gz?sign=s3cret"
        site.files["/api/datasets/cv-af/download"] = json.dumps(facts).encode()
        monkeypatch.setenv("MDC_API_URL", f"{site.url}/api")
        yield site


def test_common_voice_comes_from_the_platform_and_only_the_wanted_clips_are_unpacked(tmp_path, platform):
    archive = common_voice.download_common_voice("cv-af", tmp_path / "down")
    assert [("authorization" in headers) for _, headers in platform.requests] == [True, False]
    common_voice.extract_common_voice(archive, tmp_path / "cv", max_clips_per_speaker=3)
    clips, ledger = common_voice.read_common_voice(tmp_path / "cv", max_clips_per_speaker=3)
    assert len(clips) == len(list((tmp_path / "cv").rglob("*.mp3"))) == 6
    assert ledger["reason"].tolist() == ["Benchmark segment"] + ["over the cap of clips a speaker"] * 2
    other = make_tar(tmp_path / "other.tar.gz", {"file.py": b"1"})
    refused("is it a Common Voice archive", common_voice.extract_common_voice, other, tmp_path / "other")


def test_the_key_is_in_no_message_log_or_file(tmp_path, platform, monkeypatch, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    call = common_voice.download_common_voice, "cv-af", tmp_path / "down"
    platform.statuses, platform.files["/af.tar.gz"] = [401, 403, 404, 500], b"damaged"
    messages = [refused(told, *call) for told in ("401", "403", "404", "500", "not the file expected")]
    assert ["agree to its terms" in text for text in messages] == [True, True, False, False, False]
    everything = "".join([*messages, *capfd.readouterr(), str(files_below(tmp_path / "down"))])
    assert ("k3y-of-mine" in everything + caplog.text, "s3cret" in everything) == (False, False)
    monkeypatch.delenv("MDC_API_KEY")
    refused("MDC_API_KEY is not set", *call)


def test_speechocean762_is_fetched_and_unpacked_whole(tmp_path):
    make_half(tmp_path / "made" / "speechocean762", "train", {"0001": ("m", "6"), "0003": ("m", "6")})
    archive = make_tar(tmp_path / "s", files_below(tmp_path / "made")).read_bytes()
    with serve(files={"/s.tar.gz": archive, "/page": b"<html>"}) as site:
        refused("damaged or cut short", speechocean762.download_speechocean762, tmp_path / "other", f"{site.url}/page")
        folder = speechocean762.download_speechocean762(tmp_path / "down", f"{site.url}/s.tar.gz")
    assert len(speechocean762.read_speechocean762(folder)[0]) == 4


def test_tables_of_voxceleb_are_fetched_checked_and_what_is_there_is_kept(tmp_path, monkeypatch):
    write_frames(tmp_path / "made")
    frames = Path(shutil.make_archive(str(tmp_path / "t"), "zip", tmp_path / "made")).read_bytes()
    meta = write_meta(tmp_path).read_bytes()
    files = {"/meta/vox1_meta.csv": meta, "/meta/vox2_meta.csv": meta, "/data/vox1_test_txt.zip": frames,
             "/data/vox1_dev_txt.zip": frames, "/final_dataframe_extended.csv": b"VoxCeleb_ID,speaker_age\nid10270,\n"}  # fmt: skip
    with serve(files=files) as site:
        refused("not the file expected", voxceleb.download_voxceleb, tmp_path / "v", site.url, site.url)
        monkeypatch.setattr(voxceleb, "MD5", dict.fromkeys(voxceleb.MD5, f"md5:{hashlib.md5(frames).hexdigest()}"))
        refused("holds no ages; delete it", voxceleb.download_voxceleb, tmp_path / "v", site.url, site.url)
        (tmp_path / "v" / "final_dataframe_extended.csv").write_text("VoxCeleb_ID,speaker_age\nid10270,30\n")
        site.requests.clear()
        voxceleb.download_voxceleb(tmp_path / "v", site.url, site.url)
        assert site.requests == []
    assert len(list((tmp_path / "v").glob("vox1_*_txt/txt/id10270/5r0dWxy17C8/00001.txt"))) == 2
