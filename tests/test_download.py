"""Downloads that break off and go on, against a server on this machine."""

import hashlib
import io
import tarfile
import zipfile

import numpy as np
import pytest
from local_server import serve
from test_common_voice import V17, row, write_table
from test_speechocean762 import make_half

from lib.corpora import archives, download, transfer
from lib.corpora.common_voice import read_common_voice

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


def fetch(site, target, **options):
    return download.download_file(f"{site.url}/file.bin", target, **({"progress": False, "pause_s": 0.01} | options))


def bodies(site):
    return [headers.get("range", "") for _, _, headers in site.requests]


def left_over(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_dropped_connection_is_resumed_with_a_range_request(tmp_path):
    with serve(files={"/file.bin": CONTENT}, drop_after=[100_000, 50_000]) as site:
        fetch(site, tmp_path / "f", sha256=SHA256, md5=MD5, size=len(CONTENT))
        assert bodies(site) == ["", "bytes=100000-", "bytes=150000-"]
        assert site.requests[1][2]["if-range"] == '"v1"'
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert left_over(tmp_path) == ["f"]


def test_a_later_run_goes_on_where_a_failed_one_stopped(tmp_path):
    with serve(files={"/file.bin": CONTENT}, drop_after=[120_000, 1, 1, 1]) as site:
        with pytest.raises(download.DownloadFailed, match="run again later"):
            fetch(site, tmp_path / "f", attempts=1)
        assert not (tmp_path / "f").exists()
        assert (tmp_path / "f.part").stat().st_size == 120_000
        site.drop_after.clear()
        fetch(site, tmp_path / "f")
        assert bodies(site) == ["", "bytes=120000-"]
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_fetched_from_the_start(tmp_path):
    changed = CONTENT[::-1]
    with serve(files={"/file.bin": CONTENT}, drop_after=[100_000]) as site:
        with pytest.raises(download.DownloadFailed):
            fetch(site, tmp_path / "f", attempts=1)
        site.files["/file.bin"], site.etag = changed, '"v2"'
        fetch(site, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == changed


def test_a_server_without_ranges_is_read_from_the_start(tmp_path):
    with serve(files={"/file.bin": CONTENT}, drop_after=[100_000], has_ranges=False) as site:
        fetch(site, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize(("options", "ranges"), [({}, ["", ""]), ({"sha256": SHA256}, ["", "bytes=100000-"])])
def test_without_a_validator_only_a_checksum_allows_to_resume(tmp_path, options, ranges):
    with serve(files={"/file.bin": CONTENT}, drop_after=[100_000], etag=None) as site:
        fetch(site, tmp_path / "f", **options)
        assert bodies(site) == ranges
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_part_of_something_else_is_noticed_by_its_checksum_and_fetched_again(tmp_path):
    (tmp_path / "f.part").write_bytes(b"something else")
    with serve(files={"/file.bin": CONTENT}, etag=None) as site:
        fetch(site, tmp_path / "f", sha256=SHA256)
        assert bodies(site) == ["bytes=14-", ""]
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_part_that_is_whole_already_is_only_renamed(tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT)
    with serve(files={"/file.bin": CONTENT}) as site:
        fetch(site, tmp_path / "f", sha256=SHA256)
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"md5": "0" * 32}])
def test_a_wrong_checksum_leaves_nothing_behind(tmp_path, wrong):
    with serve(files={"/file.bin": CONTENT}) as site, pytest.raises(download.DownloadFailed, match="not 0000"):
        fetch(site, tmp_path / "f", **wrong)
    assert left_over(tmp_path) == []


def test_a_wrong_size_is_refused_before_the_body(tmp_path):
    with serve(files={"/file.bin": CONTENT}) as site, pytest.raises(download.DownloadFailed, match="expected 5"):
        fetch(site, tmp_path / "f", size=5)
    assert "f" not in left_over(tmp_path)


def test_a_file_that_cannot_be_verified_at_all_is_refused(tmp_path):
    with serve(files={"/file.bin": CONTENT}, length=False) as site:
        with pytest.raises(download.DownloadFailed, match="go unnoticed"):
            fetch(site, tmp_path / "f")
        fetch(site, tmp_path / "f", sha256=SHA256)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_right_file_is_not_fetched_again_and_a_wrong_one_is(tmp_path):
    with serve(files={"/file.bin": CONTENT}) as site:
        (tmp_path / "f").write_bytes(CONTENT)
        fetch(site, tmp_path / "f", sha256=SHA256)
        assert site.requests == []
        (tmp_path / "f").write_bytes(b"old")
        fetch(site, tmp_path / "f", sha256=SHA256)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_busy_servers_are_tried_again_and_refusals_are_not(tmp_path):
    with serve(files={"/file.bin": CONTENT}, statuses=[503, 429]) as site:
        fetch(site, tmp_path / "f")
        assert len(site.requests) == 3
    for status, words in ((401, "password"), (403, "terms"), (404, "no such file"), (410, "removed")):
        with serve(files={"/file.bin": CONTENT}, statuses=[status]) as site:
            with pytest.raises(download.DownloadFailed, match=words):
                fetch(site, tmp_path / "g")
            assert len(site.requests) == 1


@pytest.mark.parametrize("url", ["http://example.org/x", "ftp://example.org/x", "file:///etc/passwd", "//x"])
def test_only_https_is_fetched(tmp_path, url):
    with pytest.raises(ValueError, match="only https"):
        download.download_file(url, tmp_path / "f")


def test_a_redirect_away_from_https_is_refused(tmp_path, monkeypatch):
    with serve(redirects={"/file.bin": "/other.bin"}, files={"/other.bin": CONTENT}) as site:
        monkeypatch.setattr(transfer, "check_url", lambda url: url if "other" not in url else download_refusal(url))
        with pytest.raises(ValueError, match="only https"):
            fetch(site, tmp_path / "f")
    assert "f" not in left_over(tmp_path)
    assert [path for _, path, _ in site.requests] == ["/file.bin"]


def download_refusal(url):
    raise ValueError(f"{url}: only https is fetched")


def test_a_full_disk_is_noticed_before_the_first_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with serve(files={"/file.bin": CONTENT}) as site, pytest.raises(ValueError, match="GB free"):
        fetch(site, tmp_path / "f")
    assert not (tmp_path / "f.part").exists()


def test_the_next_mirror_is_asked_when_one_fails(tmp_path):
    with serve(files={"/two.bin": CONTENT}) as site:
        urls = [f"{site.url}/one.bin", f"{site.url}/two.bin"]
        download.download_first(urls, tmp_path / "f", progress=False)
        with pytest.raises(download.DownloadFailed, match=r"one\.bin(.|\n)*three\.bin"):
            download.download_first([urls[0], f"{site.url}/three.bin"], tmp_path / "g", progress=False)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_computed_checksum_is_kept_and_compared(tmp_path):
    (tmp_path / "f").write_bytes(CONTENT)
    assert download.record_checksum(tmp_path / "f") == SHA256
    assert download.record_checksum(tmp_path / "f") == SHA256
    (tmp_path / "f").write_bytes(b"other")
    with pytest.raises(ValueError, match="delete the one that is wrong"):
        download.record_checksum(tmp_path / "f")


# Mozilla Data Collective, with its real client against a server on this machine


def common_voice_archive(tmp_path, per_speaker=4) -> tuple[bytes, str]:
    folder = tmp_path / "made" / "cv-corpus-25.0-2026-03-09" / "af"
    rows = [row(c, 10 * i + n, "af") for i, c in enumerate("ab") for n in range(per_speaker)]
    write_table(folder / "validated.tsv", V17, rows)
    buffer, rng = io.BytesIO(), np.random.default_rng(1)
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for r in rows:
            member = tarfile.TarInfo(f"cv-corpus-25.0-2026-03-09/af/clips/{r['path']}")
            body = rng.bytes(50_000)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
        tar.add(folder / "validated.tsv", "cv-corpus-25.0-2026-03-09/af/validated.tsv")
    return buffer.getvalue(), hashlib.sha256(buffer.getvalue()).hexdigest()


@pytest.fixture
def platform(tmp_path, monkeypatch):
    archive, checksum = common_voice_archive(tmp_path)
    with serve(files={"/af.tar.gz": archive}) as site:
        facts = {
            "id": "cv-af",
            "filename": "af.tar.gz",
            "sizeBytes": str(len(archive)),
            "checksum": f"sha256:{checksum}",
        }
        session = facts | {"downloadUrl": f"{site.url}/af.tar.gz", "expiresAt": "2030-01-01", "downloadToken": "t"}
        site.routes["/api/datasets/cv-af"] = lambda *_: (200, facts)
        site.routes["/api/datasets/cv-af/download"] = lambda *_: (200, session)
        monkeypatch.setenv("MDC_API_KEY", "test-key")
        monkeypatch.setenv("MDC_API_URL", f"{site.url}/api")
        yield site


def get_cv(tmp_path, **options):
    return download.download_common_voice("cv-af", tmp_path / "down", pause_s=0.01, **options)


def test_common_voice_comes_whole_from_the_platform_although_the_line_drops(tmp_path, platform):
    platform.drop_after[:] = [200_000]
    archive = get_cv(tmp_path)
    asked = [(path, headers) for _, path, headers in platform.requests if path == "/af.tar.gz"]
    assert int(asked[1][1]["range"].removeprefix("bytes=").removesuffix("-")) > 100_000
    assert all("authorization" not in headers for _, headers in asked)
    folder = download.extract_common_voice(archive, tmp_path / "cv", max_clips_per_speaker=3, progress=False)
    clips, ledger = read_common_voice(folder, max_clips_per_speaker=3)
    assert len(clips) == len(list(folder.rglob("*.mp3"))) == 6
    assert ledger["reason"].tolist() == ["over the cap of clips a speaker"] * 2
    assert set(clips["language"]) == {"af"}


def test_a_damaged_delivery_is_removed_and_fetched_again(tmp_path, platform):
    right, wrong = platform.files["/af.tar.gz"], bytes(len(platform.files["/af.tar.gz"]))
    platform.files["/af.tar.gz"] = wrong
    with pytest.raises(download.DownloadFailed, match="sha256"):
        get_cv(tmp_path, attempts=1)
    assert not (tmp_path / "down" / "af.tar.gz").exists()
    platform.files["/af.tar.gz"] = right
    assert get_cv(tmp_path).read_bytes() == right


def test_without_key_or_consent_the_user_is_told_what_to_do(tmp_path, platform, monkeypatch):
    for status in (401, 403):
        platform.routes["/api/datasets/cv-af/download"] = lambda *_, status=status: (status, {"message": "no"})
        with pytest.raises(ValueError, match="AGREE TO ITS TERMS"):
            get_cv(tmp_path)
    monkeypatch.delenv("MDC_API_KEY")
    platform.requests.clear()
    with pytest.raises(ValueError, match="MDC_API_KEY is not set"):
        get_cv(tmp_path)
    assert platform.requests == []


def test_an_archive_that_is_here_already_needs_no_key(tmp_path, monkeypatch):
    monkeypatch.delenv("MDC_API_KEY", raising=False)
    (tmp_path / "mine.tar.gz").write_bytes(common_voice_archive(tmp_path)[0])
    archive = download.download_common_voice(str(tmp_path / "mine.tar.gz"), tmp_path)
    assert len(read_common_voice(download.extract_common_voice(archive, tmp_path / "cv", progress=False))[0]) == 8


def test_other_archives_are_not_taken_for_common_voice(tmp_path):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.add(__file__, "file.py")
    with pytest.raises(ValueError, match="is it a Common Voice archive"):
        download.extract_common_voice(tmp_path / "x.tar.gz", tmp_path / "cv", progress=False)


# speechocean762 and VoxCeleb's tables


def test_speechocean762_is_fetched_unpacked_and_kept(tmp_path, monkeypatch):
    make_half(tmp_path / "speechocean762", "train", {"0001": ("m", "6")})
    make_half(tmp_path / "speechocean762", "test", {"0003": ("f", "15")})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(tmp_path / "speechocean762", "speechocean762")
    monkeypatch.setattr(download, "SPEECHOCEAN_BYTES", (100, 10_000_000))
    with serve(files={"/s.tar.gz": buffer.getvalue()}, drop_after=[300]) as site:
        urls = [f"{site.url}/gone.tar.gz", f"{site.url}/s.tar.gz"]
        folder = download.download_speechocean762(tmp_path / "down", urls, progress=False)
        count = len(site.requests)
        assert download.download_speechocean762(tmp_path / "down", urls, progress=False) == folder
        assert len(site.requests) == count
    assert len(list(folder.rglob("*.WAV"))) == 4
    assert (
        (tmp_path / "down" / "speechocean762.tar.gz.sha256")
        .read_text()
        .startswith(hashlib.sha256(buffer.getvalue()).hexdigest())
    )


def test_an_error_page_in_place_of_speechocean762_is_refused(tmp_path):
    with serve(files={"/s.tar.gz": b"<html>"}) as site, pytest.raises(download.DownloadFailed, match="about 520 MB"):
        download.download_speechocean762(tmp_path, [f"{site.url}/s.tar.gz"], progress=False)


def test_age_tables_are_fetched_and_must_hold_ages(tmp_path):
    table = "speaker_age,birth_year,Name,VoxCeleb_ID,video_id\n44.0,1969.0,D,id02022,Ahk1sThoa0c\n"
    with serve(files={"/age-train.txt": table.encode(), "/age-test.txt": table.split("\n")[0].encode()}) as site:
        path = download.download_age_table(tmp_path, "age-train.txt", site.url, progress=False)
        assert path.read_text() == table
        with pytest.raises(download.DownloadFailed, match="no ages"):
            download.download_age_table(tmp_path, "age-test.txt", site.url, progress=False)
        with pytest.raises(ValueError, match="choose from"):
            download.download_age_table(tmp_path, "ages.pkl", site.url)


def test_meta_and_frame_files_are_fetched_checked_and_unpacked(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("txt/id10270/5r0dWxy17C8/00001.txt", "FRAME \n000001 \t1 \n000030 \t1 \n")
    meta = b"VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\nid10270\tX\tf\tUK\ttest\n"
    files = {"/meta/vox1_meta.csv": meta, "/meta/vox2_meta.csv": meta, "/data/vox1_test_txt.zip": buffer.getvalue()}
    with serve(files=files) as site:
        monkeypatch.setattr(download, "VOXCELEB_URL", site.url)
        assert len(download.download_voxceleb_meta(tmp_path, progress=False)) == 2
        with pytest.raises(download.DownloadFailed, match="md5"):
            download.download_voxceleb_txt(tmp_path, ["vox1_test"], progress=False)
        monkeypatch.setitem(download.VOXCELEB_TXT_MD5, "vox1_test_txt.zip", hashlib.md5(buffer.getvalue()).hexdigest())
        folder = download.download_voxceleb_txt(tmp_path, ["vox1_test"], progress=False)
        with pytest.raises(ValueError, match="choose from"):
            download.download_voxceleb_txt(tmp_path, ["vox3"])
    assert [path.name for path in folder.rglob("*.txt")] == ["00001.txt"]


def test_own_copies_of_voxceleb_are_joined_checked_and_unpacked(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("wav/id10001/5r0dWxy17C8/00001.wav", "a")
        archive.writestr("wav/id10002/5r0dWxy17C8/00001.wav", "b")
    body = buffer.getvalue()
    with pytest.raises(ValueError, match="put your own copies there"):
        download.extract_voxceleb(tmp_path, tmp_path / "out")
    (tmp_path / "vox1_dev_wav_parta").write_bytes(body[:100])
    (tmp_path / "vox1_dev_wav_partb").write_bytes(body[100:])
    with pytest.raises(ValueError, match="missing or damaged"):
        download.extract_voxceleb(tmp_path, tmp_path / "out", progress=False)
    monkeypatch.setitem(download.VOXCELEB_AUDIO_MD5, "vox1_dev_wav.zip", hashlib.md5(body).hexdigest())
    done = download.extract_voxceleb(tmp_path, tmp_path / "out", lambda name: "id10002" in name, progress=False)
    assert done == ["vox1_dev_wav.zip"]
    files = [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.wav")]
    assert files == ["vox1_dev_wav/wav/id10002/5r0dWxy17C8/00001.wav"]
    (tmp_path / "vox1_dev_wav.zip").write_bytes(body[:-1])
    with pytest.raises(ValueError, match="not the official archive"):
        download.extract_voxceleb(tmp_path, tmp_path / "out", progress=False)
