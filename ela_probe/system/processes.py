"""Several processes that share one task: how many there are, who starts them, how they communicate.

Lightning starts the processes, or finds those that torchrun or SLURM started. From then on
torch.distributed is initialised, and everything else asks it. A single process needs none of
this: the functions below then return at once.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist

from ela_probe.errors import ElaProbeError, OptionError, ProcessError
from ela_probe.system.device import resolve_device
from ela_probe.system.lightning_logging import quiet_lightning
from ela_probe.system.messages import first_line

Strategy = Literal["ddp", "fsdp"]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """How many processes share a task, one per device. `from_options` makes and checks it.

    devices: processes per node. nodes: number of machines. strategy: how they train together,
    see `from_options`.
    """

    devices: int = 1
    nodes: int = 1
    strategy: Strategy = "ddp"

    @property
    def count(self) -> int:
        """The number of processes on all nodes."""
        return self.devices * self.nodes

    @classmethod
    def from_options(
        cls,
        devices: int | None = None,
        nodes: int | None = None,
        strategy: Strategy = "ddp",
        *,
        device: str = "auto",
    ) -> "Processes":
        """The processes that a command's options and its launcher describe.

        Args:
            devices: processes on each node; None: as many as the launcher started, else 1.
            nodes: number of machines; None: as the launcher says, else 1.
            strategy: "ddp": every process holds the whole model and a part of each batch;
                "fsdp": parameters, gradients and optimizer state are divided among the processes.
            device: as in `resolve_device`.

        Raises:
            OptionError: the options contradict the launcher, each other or this machine.
        """
        where = resolve_device(device)
        launcher, started = detect_launcher()
        if started is not None:
            for option, wanted, actual in zip(
                ("--devices", "--num-nodes"), (devices, nodes), started, strict=True
            ):
                if wanted is not None and wanted != actual:
                    raise OptionError(
                        f"got {option} {wanted}, but {launcher} started {actual}; leave {option} "
                        "out, or start that many"
                    )
        processes = cls(*(started or (devices or 1, nodes or 1)), strategy)
        processes._check(where, device, launcher)
        return processes

    def _check(self, where: torch.device, device: str, launcher: str | None) -> None:
        if self.strategy == "fsdp" and self.count == 1:
            raise OptionError(
                "--strategy fsdp divides the parameters among processes, and there is only one: "
                "add --devices"
            )
        if self.nodes > 1 and launcher is None:
            raise OptionError(
                f"--num-nodes {self.nodes} needs a launcher: start the command with torchrun or "
                "srun on every node"
            )
        if self.count > 1 and where.type == "mps":
            raise OptionError(
                f"got {self.count} processes, but there is only one MPS device: choose "
                "--devices 1, or --device cpu"
            )
        if where.type == "cuda" and self.devices > 1:
            if where.index is not None:
                raise OptionError(
                    f"--device {device} names one GPU, but --devices {self.devices} needs several: "
                    "choose --device cuda (and set CUDA_VISIBLE_DEVICES to say which)"
                )
            if self.devices > torch.cuda.device_count():
                raise OptionError(
                    f"got --devices {self.devices}, but this machine has "
                    f"{torch.cuda.device_count()} GPUs: choose that many or fewer"
                )

    def launch(self, device: torch.device) -> torch.device:
        """Start the other processes, unless a launcher did, and initialise torch.distributed.

        The others run the same command from its beginning. Afterwards `rank` tells the processes
        apart.

        Args:
            device: the device of a single process; all processes use devices of this type.

        Returns: the device of this process.

        Raises:
            OptionError: torch.distributed is initialised already, with another number of processes.
        """
        if is_distributed() and process_count() != self.count:
            raise OptionError(
                f"torch.distributed runs with {process_count()} processes, expected {self.count}: "
                "make the two equal (--devices, --num-nodes)"
            )
        if is_distributed() or self.count == 1:
            return local_device(device)
        from lightning_fabric import Fabric

        accelerator = "gpu" if device.type == "cuda" else device.type
        with quiet_lightning():
            Fabric(
                accelerator=accelerator,
                devices=self.devices,
                num_nodes=self.nodes,
                strategy="ddp",
            ).launch()
        return local_device(device)


def detect_launcher() -> tuple[str | None, tuple[int, int] | None]:
    """The launcher's name and its (devices, nodes); (None, None) without a launcher.

    Raises:
        OptionError: SLURM was given its number of tasks in a way that Lightning can't use.
    """
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    environment = os.environ
    if TorchElasticEnvironment.detect():
        local, total = int(environment["LOCAL_WORLD_SIZE"]), int(environment["WORLD_SIZE"])
        return "torchrun", (local, total // local)
    with quiet_lightning():
        slurm = SLURMEnvironment.detect()
    tasks, nodes = (int(environment.get(f"SLURM_{name}", 1)) for name in ("NTASKS", "NNODES"))
    if slurm and tasks > 1:
        try:
            SLURMEnvironment()
        except RuntimeError as error:  # it requires --ntasks-per-node
            raise OptionError(f"SLURM: {first_line(error, 300)}") from error
        return "SLURM", (tasks // nodes, nodes)
    return None, None


def local_device(device: torch.device) -> torch.device:
    """The device of this process, where all processes use devices of this type."""
    if device.type == "cuda" and process_count() > 1:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def is_distributed() -> bool:
    """Whether torch.distributed is initialised."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def process_count() -> int:
    """How many processes share the task; 1 where torch.distributed is not initialised."""
    return dist.get_world_size() if is_distributed() else 1


def is_first() -> bool:
    """Whether this is the process that writes files and prints: the one of rank 0."""
    return rank() == 0


def broadcast(value: Value) -> Value:
    """The value of the first process (picklable), returned in every process."""
    if process_count() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def all_gather(value: Value) -> list[Value]:
    """The values of all processes (picklable) by rank, returned in every process."""
    if process_count() == 1:
        return [value]
    values: list[Any] = [None] * process_count()
    dist.all_gather_object(values, value)
    return values


def shutdown() -> bool:
    """Wait for all processes, then end torch.distributed: one that left early would fail the rest.

    Returns: whether this was the first process, the one that prints.
    """
    first = is_first()
    if is_distributed():
        dist.barrier()
        dist.destroy_process_group()
    return first


@contextmanager
def lost_peer_as_error() -> Iterator[None]:
    """A block in which processes wait for each other; the loss of one is a ProcessError.

    Raises:
        ProcessError: another process ended; its own error says why.
    """
    try:
        yield
    except RuntimeError as error:
        closed = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
        lost = isinstance(error, dist.DistError) or any(words in str(error) for words in closed)
        if process_count() > 1 and lost:
            raise ProcessError(
                f"process {rank() + 1} of {process_count()} stops, because another process ended; "
                "the error of that process says why"
            ) from error
        raise


@contextmanager
def raise_together() -> Iterator[None]:
    """A block after which all processes go on, or all raise the first error of any of them.

    Nothing inside the block may wait for the other processes.

    Raises:
        ElaProbeError: the error that one of the processes raised.
    """
    error: ElaProbeError | None = None
    try:
        yield
    except ElaProbeError as raised:
        error = raised
    first = next((found for found in all_gather(error) if found is not None), None)
    if first is not None:
        raise error or first
