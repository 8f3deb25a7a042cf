"""More than one machine: the embedding stage as a Ray Data job, which fills the very same store.

A row of the data set is one shard: its number and its windows. Actors load the encoder once, embed whole shards in the
same batches as `lib.embed` does here, and write them where the store lies, which every machine must see; a shard
whose actor dies is given to another. Ray is an extra: `pip install -r requirements-ray.txt`.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from lib.embed import Work, embed_shards, made_by
from lib.encoders import Encoder, load_encoder
from lib.speed.engines import RAY_ADVICE, Choice, converted_model, cores, load_engine
from lib.store import finish_store, missing_shards, save_shard, shard_ids

STARTS = 4  # tries to start Ray
SHARE = 0.5  # of the CPUs that actors may book: tasks that feed them need the rest, or the job waits for ever


def import_ray() -> Any:
    """The module ray with its data library; ValueError with what to do when it is not installed."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError(f"{RAY_ADVICE} ({error})") from error
    return ray


@contextlib.contextmanager
def ray_session(address: str = "", workers: int = 0) -> Iterator[tuple[Any, int]]:
    """Join the cluster at `address`, or start one here when it is empty; yield (ray, number of workers).

    workers: 0 = one a CPU of the cluster. A session that is on already is used as it is, and left on.
    """
    ray = import_ray()
    joined = ray.is_initialized()
    if not joined:
        _start_ray(ray, address)
    try:
        yield ray, workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        if not joined:
            ray.shutdown()


def _start_ray(ray: Any, address: str) -> None:
    """Join or start a cluster. On a busy machine Ray's own processes miss its deadline of 15 s: a few tries."""
    passed = {name: os.environ[name] for name in ("VOICE_CACHE", "VOICE_DATA", "TORCH_HOME") if name in os.environ}
    options: dict[str, Any] = {"runtime_env": {"env_vars": {**passed, "OMP_NUM_THREADS": "1"}}, "log_to_driver": False}
    if not address:
        options |= {"num_cpus": max(2, cores()), "include_dashboard": False}
    for left in reversed(range(STARTS)):
        try:
            ray.init(address=address or "local", **options)
            return
        except Exception as error:
            ray.shutdown()
            if not left:
                raise ValueError(
                    f"Ray did not start at {address or 'this machine'} ({error}); is the address right, or the machine "
                    "too busy? Set compute.engine to local to do without"
                ) from error


def fill_store_on_ray(
    folder: Path, work: Work, encoder: Encoder, feature: str, choice: Choice, workers: int = 0, address: str = ""
) -> int:
    """Like `lib.embed.fill_store`, by actors on a Ray cluster; return the number of shards made now.

    Each worker computes in one thread. ValueError when Ray is missing, or when the actors' shards do not lie in `folder`,
    as happens on a cluster that does not share it.
    """
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    import_ray()
    model = None
    if choice.library != "torch":  # converted and calibrated once, here
        model = converted_model(encoder, feature, choice, work.samples, work.calibration)
    engine = load_engine(encoder, feature, choice, samples=work.samples, streams=1, threads=1, model=model)
    made, ids = work.made_by(engine), work.window_ids
    shards = missing_shards(folder, ids, work.shard_windows, made)
    with tqdm(total=len(ids), desc=f"embedding with {encoder.name} on Ray", unit="window") as bar:
        bar.update(len(ids) - sum(len(shard_ids(ids, shard, work.shard_windows)) for shard in shards))
        if shards:
            settings = {"folder": folder, "shared": _shared(work), "encoder": encoder.name, "feature": feature}
            settings |= {"choice": choice, "model": model, "made": made}
            with ray_session(address, workers) as (ray, count):
                for row in _run_job(ray, work, shards, settings, min(count, len(shards))):
                    bar.update(int(row["windows"]))
    if left := missing_shards(folder, ids, work.shard_windows, made):
        raise ValueError(
            f"{folder}: {len(left)} shards did not arrive; every machine of the cluster must see this folder"
        )
    finish_store(folder, -(-len(ids) // work.shard_windows), engine.describe())
    return len(shards)


def _run_job(
    ray: Any, work: Work, shards: list[int], settings: dict[str, Any], workers: int
) -> Iterator[dict[str, Any]]:
    """Yield what `ShardMaker` tells of every shard, in the order in which they are done."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.from_items([_pack(work, shard) for shard in shards], override_num_blocks=len(shards))
    share = SHARE * ray.cluster_resources()["CPU"] / workers
    actors = {"concurrency": workers, "num_cpus": min(1, share)}
    done = rows.map_batches(
        ShardMaker, fn_constructor_kwargs=settings, batch_size=1, batch_format="pandas", **actors
    )  # fmt: skip
    yield from done.iter_rows()


def _pack(work: Work, shard: int) -> dict[str, Any]:
    """One row of the data set: a shard's number, and its windows and clips as Parquet bytes."""
    windows = work.windows.iloc[shard * work.shard_windows :][: work.shard_windows]
    clips = work.clips[work.clips["clip_id"].isin(windows["clip_id"])]
    return {"shard": shard, "windows": _to_bytes(windows), "clips": _to_bytes(clips)}


def _shared(work: Work) -> dict[str, Any]:
    """What all shards have in common."""
    roots = {name: Path(root).resolve() for name, root in work.roots.items()}
    return {"roots": roots, "samples": work.samples, "shard_windows": work.shard_windows, "dtype": work.dtype}


def _to_bytes(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


class ShardMaker:
    """The actor: loads the encoder once, then turns rows of the data set into shards of the store."""

    def __init__(
        self,
        folder: Path,
        shared: dict[str, Any],
        encoder: str,
        feature: str,
        choice: Choice,
        model: Path | None,
        made: str,
    ):
        self.folder, self.shared, self.made = folder, shared, made
        options = {"samples": shared["samples"], "streams": 1, "threads": 1, "model": model}
        self.engine = load_engine(load_encoder(encoder), feature, choice, **options)
        if made_by(self.engine, shared["dtype"], shared["samples"]) != made:
            raise ValueError(f"{encoder} on this machine is not that of the driver: other weights, or another library")

    def __call__(self, batch: pd.DataFrame) -> pd.DataFrame:
        """Make the shards of these rows; return their numbers, sizes, and by whom."""
        done = []
        for row in batch.itertuples():
            windows, clips = (pd.read_parquet(io.BytesIO(table)) for table in (row.windows, row.clips))
            ids = windows["window_id"].tolist()
            for _, tensors in embed_shards(Work(windows, clips, **self.shared), [0], self.engine):
                save_shard(self.folder, row.shard, ids, tensors, self.made)
            done.append({"shard": row.shard, "windows": len(ids), "worker": os.getpid()})
        return pd.DataFrame(done)
