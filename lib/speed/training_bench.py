"""How fast the paper's gender network trains, against a plain loop written the paper's way, and in how much memory.

`python -m lib.speed.training_bench` prints the table; `--curve 200` also follows the loss of both for so many steps.
`--memory 155000` trains on so many invented windows of [149, 32] from a store on disk instead, and prints the peak of
resident memory; 155,000 is the size of the paper's gender set.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lib.networks import GenderNet, build_network
from lib.store import Store, finish_store, save_shard
from lib.train import fit_network, make_loop

FORMS = {  # name -> options of `fit_network`
    "fp32": {},
    "fp32, channels last": {"channels_last": True},
    "bf16": {"precision": "bf16"},
    "bf16, channels last": {"precision": "bf16", "channels_last": True},
}


def make_batches(count: int, batch: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Seeded features [count * batch, 149, 32] and two classes that differ a little in the middle columns."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, count * batch)
    features = rng.normal(size=(count * batch, 149, 32)).astype(np.float32)
    features[:, 40:110, 8:20] += 0.25 * targets[:, None, None]
    return features, targets


def plain_step(width: float) -> Callable[[Tensor, Tensor], float]:
    """One step as in the paper's loop: fp32, default layout, `CrossEntropyLoss`, default Adam."""
    torch.manual_seed(0)
    network = GenderNet(2, width).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    criterion = nn.CrossEntropyLoss(weight=torch.ones(2))

    def step(features: Tensor, targets: Tensor) -> float:
        optimizer.zero_grad()
        loss = criterion(network(features), targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def our_step(width: float, batch: int, options: dict) -> Callable[[Tensor, Tensor], float]:
    """One step of the project's loop with these options, from the same weights."""
    model = build_network("paper", ["male", "female"], 149, 32, width=width, normalisation="none", seed=0)
    loop = make_loop(model, classes=["male", "female"], learning_rate=1e-4, batch=batch, seed=0, **options)

    def step(features: Tensor, targets: Tensor) -> float:
        return float(loop.train_step(features, targets, torch.ones(len(targets)))[1])

    return step


def measure_speed(rounds: int = 5, batch: int = 50, width: float = 1.0) -> pd.DataFrame:
    """Seconds a step of the plain loop and of every form, taken in turns: median, and ratio of the plain loop to it."""
    features, targets = map(torch.from_numpy, make_batches(1, batch))
    steps = {"plain loop": plain_step(width)}
    steps |= {name: our_step(width, batch, options) for name, options in FORMS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step(features, targets)
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - started)
    table = pd.DataFrame({"form": list(steps), "seconds": [float(np.median(seconds[name])) for name in steps]})
    return table.assign(ratio=table["seconds"].iloc[0] / table["seconds"], threads=torch.get_num_threads())


def compare_losses(steps: int = 200, batch: int = 50, width: float = 1.0) -> pd.DataFrame:
    """Loss of each step, without dropout's noise in common: columns step, `fp32` and `bf16, channels last`."""
    features, targets = make_batches(min(steps, 40), batch)
    names = ["fp32", "bf16, channels last"]
    losses = {}
    for name in names:
        step = our_step(width, batch, FORMS[name])
        torch.manual_seed(1)
        losses[name] = []
        for number in range(steps):
            rows = slice(number % 40 * batch, (number % 40 + 1) * batch)
            losses[name].append(step(torch.from_numpy(features[rows]), torch.from_numpy(targets[rows])))
    return pd.DataFrame({"step": np.arange(1, steps + 1)} | losses)


def write_store(folder: Path, windows: int, shard_windows: int = 512) -> tuple[Store, np.ndarray]:
    """A store of invented `frames` [windows, 149, 32] in float16, written shard by shard, and the classes [windows]."""
    targets = []
    for shard, start in enumerate(range(0, windows, shard_windows)):
        features, classes = make_batches(1, min(shard_windows, windows - start), seed=shard)
        ids = [f"w{number:07d}" for number in range(start, start + len(classes))]
        save_shard(folder, shard, ids, {"frames": features.astype(np.float16)})
        targets.append(classes)
    finish_store(folder, len(targets))
    return Store(folder), np.concatenate(targets)


def measure_memory(folder: Path, windows: int, steps: int | None = None, width: float = 1.0) -> dict[str, float]:
    """Peak resident memory (GB) of one epoch of training and validation on `windows` invented windows in `folder`.

    As a run does it: normalised, batch 50, a random order over the whole store, 12 % for validation. steps: at most so
    many of training, and as many batches of validation, spread over its whole part; None = all. The peak counts mapped pages of the store too, and everything the process did before.
    """
    from lib.stages import peak_memory_mb

    started = time.perf_counter()
    store, targets = write_store(folder, windows)
    written_gb, cut = peak_memory_mb() / 1000, round(0.88 * windows)
    asked = np.arange(cut, windows)[:: 1 if steps is None else max(1, (windows - cut) // (50 * steps))]
    model = build_network("paper", ["male", "female"], 149, 32, width=width, seed=0)
    fit_network(
        model, store.features("frames", store.index["window_id"]), targets, np.arange(cut), asked,
        classes=["male", "female"], epochs=1, learning_rate=1e-4, batch=50, seed=0, folder=folder / "training",
        steps=steps, precision="bf16", channels_last=True,
    )  # fmt: skip
    sizes = sum(path.stat().st_size for path in folder.glob("shard-*.safetensors")) / 1e9
    found = {"windows": windows, "store_gb": sizes, "peak_after_writing_gb": written_gb}
    return found | {"peak_gb": peak_memory_mb() / 1000, "minutes": (time.perf_counter() - started) / 60}


def main() -> None:
    """Print the table, and with `--curve` how far the losses part; with `--memory` the peak of memory alone."""
    parser = argparse.ArgumentParser(description="Speed of one training step of the paper's gender network.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--curve", type=int, default=0, metavar="STEPS", help="compare the losses over so many steps")
    parser.add_argument("--memory", type=int, default=0, metavar="WINDOWS", help="measure memory on so many windows")
    parser.add_argument("--steps", type=int, default=None, help="with --memory: at most so many steps of training")
    options = parser.parse_args()
    if options.memory:
        with tempfile.TemporaryDirectory(prefix="training-memory-") as folder:
            found = measure_memory(Path(folder), options.memory, options.steps, options.width)
        print(", ".join(f"{name} {value:.2f}" for name, value in found.items()))
        return
    print(measure_speed(options.rounds, width=options.width).to_string(index=False, float_format="%.3f"))
    if options.curve:
        table = compare_losses(options.curve, width=options.width)
        exact, fast = table["fp32"].to_numpy(), table["bf16, channels last"].to_numpy()
        smooth = np.ones(20) / 20
        apart = np.abs(np.convolve(exact, smooth, "valid") - np.convolve(fast, smooth, "valid")).max()
        print(f"loss over {options.curve} steps: fp32 {exact[0]:.4f} -> {exact[-20:].mean():.4f}, ", end="")
        print(f"bf16 {fast[0]:.4f} -> {fast[-20:].mean():.4f}; largest distance of 20-step means {apart:.4f}")


if __name__ == "__main__":
    main()
