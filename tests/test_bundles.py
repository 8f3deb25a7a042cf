import json

import pytest
import torch
from recordings_fixture import CENTRES, CLASSES, make_bundle

from lib.model_folder import load_bundle
from lib.stages import fingerprint_of
from lib.trust.calibration import Calibration, Years


def change(folder, **values):
    path = folder / "model.json"
    found = json.loads(path.read_text()) | values
    found.pop("checksum")
    path.write_text(json.dumps(found | {"checksum": fingerprint_of(found)}))


def test_a_folder_travels_and_gives_the_same_heads(tmp_path):
    record = {"task": "gender", "metric": "uar", "value": 0.9, "low": float("nan"), "high": 1.0, "level": "clip"}
    options = {"calibrations": {"age": Calibration(1.5)}, "thresholds": {"age": 0.7}, "metrics": [record]}
    first = make_bundle(tmp_path / "here", **options)
    (tmp_path / "here").rename(tmp_path / "elsewhere")
    second = load_bundle(tmp_path / "elsewhere", first.encoder)
    assert {task: head.classes for task, head in second.heads.items()} == CLASSES
    assert (second.heads["age"].calibration, second.heads["age"].threshold) == (Calibration(1.5), 0.7)
    assert (second.heads["gender"].calibration, second.heads["gender"].threshold) == (Calibration(), 0.0)
    x = torch.randn(2, 149, 32)
    assert torch.equal(first.heads["gender"].model(x), second.heads["gender"].model(x))
    assert second.fingerprint == first.fingerprint
    assert not list(tmp_path.glob(".*"))


def test_a_model_of_rounded_embeddings_says_so_when_it_is_loaded_and_in_its_card(tmp_path):
    engine = {"library": "openvino", "precision": "bfloat16", "why": "the processor has bfloat16"}
    make_bundle(tmp_path / "model", about={"engine": engine})
    told = load_bundle(tmp_path / "model").warnings
    assert any("trained on embeddings by openvino in bfloat16; answers here" in line for line in told)
    assert "library: openvino, precision: bfloat16" in (tmp_path / "model/README.md").read_text()
    make_bundle(tmp_path / "exact", about={"engine": engine | {"precision": "float32"}})
    assert load_bundle(tmp_path / "exact").warnings == []


def test_the_card_says_what_a_voice_does_not_tell(tmp_path):
    make_bundle(tmp_path / "model", about={"synthetic": True, "corpora": ["own_data"]})
    card = (tmp_path / "model/README.md").read_text()
    for words in [
        "does not reveal gender identity",
        "how a voice *sounds*",
        "Consent",
        "Misuse",
        "leaves",
        "own_data",
        "synthetic voices",
    ]:
        assert words in card


def test_a_model_of_synthetic_voices_says_so_when_loaded(tmp_path):
    bundle = make_bundle(tmp_path / "model", about={"synthetic": True})
    assert "synthetic voices" in bundle.warnings[0]
    assert make_bundle(tmp_path / "real", about={"synthetic": False}).warnings == []


def test_thresholds_and_intervals_travel_and_are_told_in_words(tmp_path):
    years = Years(CENTRES, 8.25, speakers=11, validation_coverage=0.85, test_coverage=0.79, test_speakers=19)
    tasks = (*CLASSES, "age_years")
    bundle = make_bundle(tmp_path / "model", tasks=tasks, rare={"age": ("teen", 0.375)}, years={"age_years": years})
    assert bundle.heads["age"].rare == ("teen", 0.375)
    assert bundle.heads["age_years"].years == years
    assert bundle.heads["gender"].rare is bundle.heads["gender"].years is None
    card = (tmp_path / "model/README.md").read_text()
    words = "8.2 years each way for 80 %, from 11 validation speakers; held 79 % of the recordings of 19 test speakers"
    assert words in card
    assert words in bundle.describe()["years"].tolist()
    assert "teen from 0.375" in card


def test_a_description_that_lacks_a_part_is_refused(tmp_path):
    make_bundle(tmp_path / "model")
    path = tmp_path / "model/model.json"
    path.write_text(json.dumps({"format": 1, "dtype": "float16", "heads": {}}))
    with pytest.raises(ValueError, match=r"lacks \['about', 'encoder'"):
        load_bundle(tmp_path / "model")
    path.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_bundle(tmp_path / "model")


def test_a_changed_weight_file_is_refused(tmp_path):
    make_bundle(tmp_path / "model")
    path = tmp_path / "model/age.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"age\.safetensors: SHA-256 is .* copy the whole folder again"):
        load_bundle(tmp_path / "model")
    path.unlink()
    with pytest.raises(ValueError, match=r"age\.safetensors is missing"):
        load_bundle(tmp_path / "model")


def test_a_changed_threshold_is_refused_and_a_folder_without_a_checksum_is_not(tmp_path):
    make_bundle(tmp_path / "model", thresholds={"age": 0.75}, calibrations={"age": Calibration(1.5)})
    path = tmp_path / "model/model.json"
    text = path.read_text()
    for old, new in (('"threshold": 0.75', '"threshold": 0.15'), ('"temperature": 1.5', '"temperature": 9.5')):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match="was changed after it was written"):
            load_bundle(tmp_path / "model")
    found = json.loads(text)
    assert found.pop("checksum")
    path.write_text(json.dumps(found))
    assert load_bundle(tmp_path / "model").heads["age"].threshold == 0.75
    path.write_text("[]")
    with pytest.raises(ValueError, match="describes no model"):
        load_bundle(tmp_path / "model")


def test_other_encoder_weights_format_and_dtype_are_refused(tmp_path):
    bundle = make_bundle(tmp_path / "model")
    change(tmp_path / "model", encoder={"name": bundle.encoder.name, "weights_sha256": "0" * 64, "note": ""})
    with pytest.raises(ValueError, match="was trained on encoder wav2vec2-tiny-untrained with weights 000000000000"):
        load_bundle(tmp_path / "model")
    change(tmp_path / "model", dtype="float8")
    with pytest.raises(ValueError, match="float8"):
        load_bundle(tmp_path / "model")
    change(tmp_path / "model", format=99)
    with pytest.raises(ValueError, match="format 99"):
        load_bundle(tmp_path / "model")
    with pytest.raises(ValueError, match="no model folder"):
        load_bundle(tmp_path)


def test_another_library_version_is_a_warning_and_no_error(tmp_path):
    bundle = make_bundle(tmp_path / "model")
    assert bundle.warnings == []
    change(tmp_path / "model", versions=bundle.description["versions"] | {"torch": "1.0.0"})
    assert "torch 1.0.0 there" in load_bundle(tmp_path / "model").warnings[0]


def test_saving_again_replaces_the_folder_and_a_failure_leaves_the_old_one(tmp_path):
    make_bundle(tmp_path / "model")
    second = make_bundle(tmp_path / "model", thresholds={"age": 0.9})
    assert second.heads["age"].threshold == 0.9
    with pytest.raises(ValueError):
        make_bundle(tmp_path / "model", about={"share": float("nan")})
    assert load_bundle(tmp_path / "model", second.encoder).heads["age"].threshold == 0.9
