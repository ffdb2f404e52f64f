"""Extraction on a cluster: the same shards, made by Ray Data's actors, written by the one process that asked.

An actor makes a whole group of clips or sentences at a time with the functions that one machine uses
(`calmctl/store/shards.py`), each clip decoded in a process of its own as always; the driver writes each shard as it
arrives. So the store is the one that a single machine makes, byte for byte, and an interrupted extraction goes on where
it was, on the cluster or off it. Every node must see the clips under the same paths and have calmctl installed.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calmctl.errors import RunFailed
from calmctl.model.backbone import Backbone
from calmctl.runtime import require_packages
from calmctl.samples import Clip, LeftOut
from calmctl.store.shards import Encoder, FrameShard, decoder, frame_shards
from calmctl.video.pool import available_cores


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One shard to make.

    Attributes:
        group: Its number.
        keys: Ids of the group's clips, or its sentences.
        clips: The clips by id; None for sentences.
    """

    group: int
    keys: Sequence[str]
    clips: Mapping[str, Clip] | None


@dataclass(frozen=True, slots=True)
class ActorConfig:
    """How an actor decodes and encodes.

    Attributes:
        n_frames: Frames per clip, F.
        batch_frames: Frames the backbone sees at once.
        device: "cpu", or "cuda" for one GPU an actor.
        cpus: Cores of an actor: as many threads and as many decoding processes.
        timeout_s: Time limit for one clip, in seconds.
    """

    n_frames: int
    batch_frames: int
    device: str
    cpus: int
    timeout_s: float


def cluster_shards(
    tasks: Sequence[ShardTask],
    backbone: Backbone,
    *,
    actors: int,
    n_frames: int,
    batch_frames: int,
    device: str,
    workers: int | None,
    timeout_s: float,
) -> Generator[tuple[ShardTask, FrameShard | Tensor], None, None]:
    """Make shards on the cluster that RAY_ADDRESS names, or on a Ray of this machine alone.

    Args:
        tasks: What to make.
        backbone: The encoder; every actor gets these very weights.
        actors: How many.
        n_frames: Frames per clip, F.
        batch_frames: Frames the backbone sees at once.
        device: Where it runs; on "cuda" an actor asks for one GPU.
        workers: Cores of an actor; None to share out those of the cluster.
        timeout_s: Time limit for decoding one clip, in seconds.

    Yields:
        Each task, as soon as it is done, with its content: features [n, D] of sentences, or a `FrameShard`.

    Raises:
        BadInput: Ray is not installed.
    """
    if not tasks:
        return
    with _ray() as ray:
        cpus = workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // actors)
        config = ActorConfig(n_frames, batch_frames, device, cpus, timeout_s)
        # A block per task makes it a queue: who is free takes the next one, and nobody waits for the slowest share.
        rows = ray.data.from_items([{"task": number} for number in range(len(tasks))], override_num_blocks=len(tasks))
        # Once into Ray's object store, from where every actor reads it, and not with every task.
        shared = ray.put((tasks, backbone.cpu()))
        results = rows.map(
            _Actor,
            fn_constructor_args=(shared, config),
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(tasks))),
            num_cpus=cpus,
            num_gpus=1 if device == "cuda" else 0,
        )
        for row in results.iter_rows():
            task = tasks[row["task"]]
            yield task, _unpacked(task, row["features"], json.loads(row["about"]))


class _Actor:
    """One Ray actor: holds the encoder, makes shard after shard."""

    def __init__(self, shared: Any, config: ActorConfig) -> None:
        import ray

        # Ray's default is one thread, whatever an actor has reserved.
        torch.set_num_threads(config.cpus)
        self._tasks, backbone = ray.get(shared)
        self._encoder = Encoder(
            backbone, device=config.device, n_frames=config.n_frames, batch_frames=config.batch_frames
        )
        self._decode = decoder(self._encoder, config.n_frames, workers=config.cpus, timeout_s=config.timeout_s)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        task: ShardTask = self._tasks[row["task"]]
        about: dict[str, Any] = {}
        if task.clips is None:
            features = self._encoder.texts(task.keys)
        else:
            (shard,) = frame_shards([task.keys], task.clips, self._encoder, self._decode)
            features = shard.features
            about = {"sources": shard.sources, "left_out": [asdict(clip) for clip in shard.left_out]}
        about["shape"] = features.shape
        return {"task": row["task"], "features": features.numpy().tobytes(), "about": json.dumps(about)}


def _unpacked(task: ShardTask, features: bytes, about: dict[str, Any]) -> FrameShard | Tensor:
    array = np.frombuffer(features, np.float32).reshape(about["shape"]).copy()
    if task.clips is None:
        return torch.from_numpy(array)
    left_out = [LeftOut(**clip) for clip in about["left_out"]]
    return FrameShard(torch.from_numpy(array), about["sources"], left_out)


@contextmanager
def _ray() -> Iterator[Any]:
    """The ray module, connected; a Ray that was started here ends with the block.

    A Ray of this machine alone is for this process alone: it asks for a token that only this process and its
    children know (older versions of Ray know none), and keeps its session in a folder that nobody else can enter.
    Its servers listen on all addresses all the same (2.60 turns 127.0.0.1 into the machine's own where it has one).
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # no report to Ray's makers
    alone = "RAY_ADDRESS" not in os.environ
    if alone and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:  # it reads them on being imported
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    require_packages(["ray"], extra="cluster", what="--ray")
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False  # there is one already
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    with ExitStack() as session:
        try:
            if alone:
                folder = session.enter_context(_temporary_session())
                options |= {"address": "local", "include_dashboard": False, "num_cpus": available_cores()}
                # One level down: Ray opens its own folder to everybody.
                options |= {"_node_ip_address": "127.0.0.1", "_temp_dir": os.path.join(folder, "ray")}
            ray.init(**options)
        except Exception as fault:  # that it is too slow to start is a plain Exception of its
            what = " ".join(str(fault).split()) or type(fault).__name__
            raise RunFailed(f"--ray: Ray does not start: {what}; try again, or leave --ray out") from fault
        session.callback(ray.shutdown)
        yield ray


_SESSION = "CALMCTL_RAY_SESSION"
"""In the environment of all that Ray starts: the folder of its session."""

# The kernel ends most of Ray's processes with the one that started them. Two helpers of its node look for themselves,
# and begin with that only when they have reached a server that may be gone by then: they tried for over a minute.
_WARDEN = """
import os, shutil, sys, time
variable, folder = sys.argv[1:]
sys.stdin.buffer.read()  # it ends with the process that holds the other end
looks = 0
while looks < 3:  # one may have been about to start another
    looks += 1
    for number in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{number}/environ", "rb") as environment:
                if f"{variable}={folder}".encode() in environment.read().split(b"\\0"):
                    os.kill(int(number), 9)
                    looks = 0
        except OSError:  # another user's, or it has ended
            pass
    time.sleep(0.1)
shutil.rmtree(folder, ignore_errors=True)
"""


@contextmanager
def _temporary_session() -> Iterator[str]:
    """A folder for a Ray of this process alone. On Linux all that was started in the block ends with this process.

    A process of its own sees to that, also where this one is killed, and removes the folder.
    """
    folder = mkdtemp(prefix="ray-")
    command = [sys.executable, "-I", "-S", "-c", _WARDEN, _SESSION, folder]
    warden = None
    try:
        if sys.platform == "linux":
            # In a session of its own: what ends this process's group must not end it.
            warden = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
        os.environ[_SESSION] = folder
        yield folder
    finally:
        os.environ.pop(_SESSION, None)
        if warden is not None:
            warden.communicate()
        shutil.rmtree(folder, ignore_errors=True)
