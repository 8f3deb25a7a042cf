import json

from lib.encoders import UNTRAINED, load_encoder
from lib.speed import bench


def test_every_part_is_measured_against_its_reference_and_written(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "load_full_size", lambda: load_encoder(UNTRAINED))
    monkeypatch.delenv("CORPORA", raising=False)
    options = ["--windows", "2", "--tries", "1", "--width", "0.05", "--memory", "20", "--out", str(tmp_path / "b.json")]
    bench.main(options)
    record = json.loads((tmp_path / "b.json").read_text())
    for part in ("full-size encoder", "small encoder"):
        rows = {row["engine"]: row for row in record[part]}
        assert rows["the paper's loop"]["ratio"] == 1
        assert rows["torch float32"]["frames_rms_error"] < 1e-6 < rows["torch bfloat16"]["frames_rms_error"] < 0.05
        assert sum("ratio" in row or "note" in row for row in rows.values()) == 1 + len(bench.ENGINES) == 6
    assert [row["form"] for row in record["training step"]] == ["a plain loop", "float32", "bfloat16"]
    assert record["memory"][0]["training_mb"] >= record["memory"][0]["embedding_mb"] > 100
