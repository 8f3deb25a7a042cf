"""More than one machine: the embedding stage by Ray's actors, which fill the very same store with whole blocks, in the same
batches as `lib.embed` does here. Every machine must see `windows.npy` and the store. An actor that dies is started again, and its
block with it. Ray is an extra: `pip install -r requirements-ray.txt`."""

from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lib.compute import cores
from lib.embed import calibration_waveforms, describe_store, embed_blocks
from lib.encoders import Encoder, load_encoder
from lib.speed.engines import RAY_ADVICE, EngineChoice, converted_model, load_engine
from lib.store import StoreWriter


def start_ray(address: str = "") -> Any:
    """The module ray, joined to the cluster at `address`; "" = one started here. ValueError when it does not start."""
    try:
        import ray
    except ImportError as error:
        raise ValueError(f"{RAY_ADVICE} ({error})") from error
    own = {} if address else {"num_cpus": cores(), "include_dashboard": False}
    try:
        ray.init(address or "local", log_to_driver=False, ignore_reinit_error=True, **own)
    except Exception as error:
        ray.shutdown()
        where, advice = address or "this machine", "Set compute.engine to local to do without"
        raise ValueError(f"Ray did not start at {where} ({error}); is the address right? {advice}") from error
    return ray


def embed_on_ray(
    folder: Path, windows: np.memmap, window_ids: list[str], encoder: Encoder, choice: EngineChoice, *,
    feature: str = "emission", dtype: str = "float16", copy: int = 0, seed: int = 0, workers: int = 0,
    address: str = "",
) -> int:  # fmt: skip
    """Like `lib.embed.embed_windows`, by `workers` one-core actors; 0 = one a CPU of the cluster.
    windows: the memory map of a file that every machine sees. ValueError when Ray is missing, or when the actors' blocks
    do not lie in `folder`, as happens on a cluster that does not share it. What an actor raises is raised here."""
    samples = windows.shape[1]
    writer = StoreWriter(folder.resolve(), window_ids, describe_store(encoder, feature, dtype, samples))
    if missing := writer.missing():
        ray, model = start_ray(address), None
        if choice.library != "torch":  # converted and calibrated once, here
            model = converted_model(encoder, feature, choice.precision, samples, lambda: calibration_waveforms(windows))
        settings = {"feature": feature, "choice": choice, "samples": samples, "streams": 1, "model": model}
        identity = load_engine(encoder, **settings).identity
        shared = {"writer": ray.put(writer), "path": Path(windows.filename).resolve(), "copy": copy, "seed": seed}
        shared |= {"encoder": encoder.name, "settings": settings, "identity": identity}
        cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        count = min(workers or cpus, len(missing))
        remote = ray.remote(num_cpus=min(1, cpus / count), max_restarts=-1, max_task_retries=-1)
        pool = ray.util.ActorPool([remote(BlockMaker).remote(**shared) for _ in range(count)])
        with tqdm(total=len(window_ids), desc=f"embedding with {encoder.name} on Ray", unit="window") as bar:
            bar.update(len(window_ids) - sum(rows.stop - rows.start for rows in missing))
            for done in pool.map_unordered(lambda actor, rows: actor.make.remote(rows), missing):
                bar.update(done)
    writer.finish()
    return len(missing)


class BlockMaker:
    """The actor: loads the encoder once, then writes blocks of the store. ValueError when its encoder is another one."""

    def __init__(self, writer, path: Path, copy: int, seed: int, encoder: str, settings: dict, identity: list[str]):
        self.writer, self.windows, self.copy, self.seed = writer, np.load(path, mmap_mode="r"), copy, seed
        self.engine = load_engine(load_encoder(encoder), **settings)
        if self.engine.identity != identity:
            raise ValueError(f"{encoder} on this machine is not that of the driver: other weights, or another library")

    def make(self, rows: slice) -> int:
        """Embed and write one block; return its number of windows."""
        embed_blocks(self.writer, self.windows, self.engine, [rows], self.copy, self.seed)
        return rows.stop - rows.start
