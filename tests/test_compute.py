import pytest
import torch
from checks import refused

from lib.compute import choose_compute

ONEDNN, ATEN = "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch):
    """A processor without bfloat16, no GPU, no limit from outside."""
    monkeypatch.delenv(ONEDNN, raising=False)
    monkeypatch.delenv(ATEN, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
@pytest.mark.parametrize(("limit", "value"), [(ONEDNN, "AVX2"), (ONEDNN, "avx512_core"), (ATEN, "avx2")])
def test_auto_is_bfloat16_where_it_is_computed_and_a_limit_plays_a_plain_machine(monkeypatch, flag, limit, value):
    assert choose_compute().arithmetic == "float32"
    with pytest.warns(RuntimeWarning, match="emulates it: a training step takes three to five times that of float32"):
        assert choose_compute(arithmetic="bfloat16").arithmetic == "bfloat16"  # by name, whatever it costs
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {flag: True})
    assert choose_compute().record()["bfloat16"] == [flag]
    with choose_compute().autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    monkeypatch.setenv(limit, value)
    assert choose_compute().arithmetic == "float32"


def test_a_gpu_is_taken_by_auto_and_its_float32_is_exact(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    for computed, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, yes=computed: yes)
        assert (choose_compute().device, choose_compute().arithmetic) == ("cuda", expected)
    assert not torch.backends.cudnn.allow_tf32


def test_unknown_names_and_a_device_that_is_not_there_are_refused():
    refused("device 'cuda': torch finds none on this machine; set it to 'auto' or 'cpu'", choose_compute, "cuda")
    for names in (("tpu", "auto"), ("auto", "fp16")):
        refused(r"must be of \['auto', 'cpu', 'cuda', 'mps'\] and of \['auto', 'float32'", choose_compute, *names)
