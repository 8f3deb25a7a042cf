import pytest
import torch
from torch import nn

from lib import convolutions
from lib.networks import AgeNet, GenderNet

pytestmark = pytest.mark.skipif(not convolutions.is_supported(), reason="this processor has no bfloat16 convolutions")


@pytest.mark.parametrize("kind", [AgeNet, GenderNet])
def test_fast_form_rounds_no_worse_than_autocast(kind):
    torch.manual_seed(0)
    network = kind(width=0.1)
    network.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    features, found = torch.randn(8, 149, 32), {}
    for form in ("fp32", "autocast", "fast"):
        network.fast = form == "fast"
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=form == "autocast"):
            out = network(features).float()
        (out * torch.linspace(-1, 1, out.shape[1])).sum().backward()
        found[form] = out.detach(), [parameter.grad.flatten() for parameter in network.parameters()]
    exact = found["fp32"][0]
    apart = {form: (found[form][0] - exact).square().mean().sqrt() / exact.std() for form in ("autocast", "fast")}
    assert apart["fast"] < max(0.02, 1.5 * apart["autocast"])  # relative RMS: single values depend on the threads
    for exact, autocast, fast in zip(*(found[form][1] for form in ("fp32", "autocast", "fast"))):
        alike = [torch.nn.functional.cosine_similarity(exact, other, dim=0) for other in (autocast, fast)]
        assert alike[1] > max(0.85, alike[0] - 0.05)


def test_stack_that_cannot_run_fast_is_refused():
    with pytest.raises(ValueError, match="a ReLU after it"):
        convolutions.run_fast(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), torch.randn(2, 20, 8))
