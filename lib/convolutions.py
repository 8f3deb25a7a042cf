"""The paper's stack of convolutions in bfloat16, as fast as the processor's convolution library runs it.

Three things, together about 1.1x over autocast with channels last: convolution and ReLU are one pass; time is the inner
axis (149 frames fill the vector registers that 32 columns leave half empty); weights are cast and laid out once a step.
The parameters stay float32 and in the published orientation, so checkpoints know nothing of this.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def is_supported() -> bool:
    """True where torch was built with oneDNN and the processor computes in bfloat16."""
    mkldnn = torch.ops.mkldnn
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(mkldnn, "_convolution_pointwise")
        and hasattr(mkldnn, "_is_mkldnn_bf16_supported")
        and bool(mkldnn._is_mkldnn_bf16_supported())
    )


def run_fast(layers: nn.Sequential, features: Tensor) -> Tensor:
    """Run convolutions (each followed by a ReLU), poolings and the rest on [B, T, D]; bfloat16 [B, C, d, t] comes out."""
    values = features.unsqueeze(1).transpose(2, 3).to(torch.bfloat16)  # [B, 1, D, T]
    queue = list(layers)
    while queue:
        layer = queue.pop(0)
        if isinstance(layer, nn.Conv2d):
            if not isinstance(queue.pop(0), nn.ReLU) or layer.stride != (1, 1):
                raise ValueError(f"{layer} must have stride 1 and a ReLU after it to run fast")
            weight = layer.weight.transpose(2, 3).to(torch.bfloat16, memory_format=torch.channels_last)
            values = _ConvolutionReLU.apply(values, weight, layer.bias.to(torch.bfloat16), list(layer.padding[::-1]))
        elif isinstance(layer, nn.MaxPool2d):
            values = nn.functional.max_pool2d(values, _swap(layer.kernel_size), _swap(layer.stride))
        else:
            values = layer(values)
    return values


class _ConvolutionReLU(torch.autograd.Function):
    """Convolution of stride 1 and ReLU in one pass of oneDNN, with its gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, padding: list[int]) -> Tensor:
        fused = torch.ops.mkldnn._convolution_pointwise
        out = fused(values, weight, bias, padding, [1, 1], [1, 1], 1, "relu", [], "")
        ctx.save_for_backward(values, weight, out)
        ctx.padding = padding
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, out = ctx.saved_tensors
        gradient = torch.ops.aten.threshold_backward(gradient, out, 0)
        shape, wanted = [weight.shape[0]], [ctx.needs_input_grad[0], True, True]
        form = ([1, 1], ctx.padding, [1, 1], False, [0, 0], 1)
        return *torch.ops.aten.convolution_backward(gradient, values, weight, shape, *form, wanted), None


def _swap(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[1], size[0])
