"""Several processes on one task: how many there are, who starts them, what they say to each other.

Lightning starts them, or finds that torchrun or SLURM has; torch.distributed is up from then on,
and asking it is how everything else knows. Without it there is one process, and nothing waits.
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

Strategy = Literal["ddp", "fsdp"]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """How many processes share a task, one a device. Made by `asked_for`, which checks.

    devices: processes a node. nodes: machines. strategy: how training uses them.
    """

    devices: int = 1
    nodes: int = 1
    strategy: Strategy = "ddp"

    @property
    def count(self) -> int:
        return self.devices * self.nodes

    def launch(self, device: torch.device) -> torch.device:
        """Become one of them: start the others, unless a launcher did, and meet them.

        The others run the same command from its beginning; from here on `rank` tells who is who.

        Args:
            device: of one process; its kind is that of all.

        Returns: where this process computes.

        Raises:
            OptionError: torch.distributed is up already, with another number of processes.
        """
        if is_up() and count() != self.count:
            raise OptionError(
                f"torch.distributed is up with {count()} processes, but {self.count} were asked "
                "for: ask for as many (--devices, --num-nodes)"
            )
        if is_up() or self.count == 1:
            return own(device)
        from lightning_fabric import Fabric

        accelerator = "gpu" if device.type == "cuda" else device.type
        with quiet_lightning():
            Fabric(
                accelerator=accelerator,
                devices=self.devices,
                num_nodes=self.nodes,
                strategy="ddp",
            ).launch()
        return own(device)


def asked_for(
    devices: int | None = None,
    nodes: int | None = None,
    strategy: Strategy = "ddp",
    *,
    device: str = "auto",
) -> Processes:
    """The processes of a command, as its options and its launcher say.

    Args:
        devices: processes on each node; what the launcher started, else 1, when None.
        nodes: machines; as the launcher says, else 1, when None.
        strategy: "ddp": every process holds the model and a part of each batch;
            "fsdp": the parameters, gradients and optimizer are shared out.
        device: as `resolve_device`.

    Raises:
        OptionError: they contradict the launcher, each other or this machine.
    """
    where = resolve_device(device)
    launcher, there = started_by()
    options = (("--devices", devices), ("--num-nodes", nodes))
    for (option, asked), started in zip(options, there or (), strict=False):
        if asked is not None and asked != started:
            raise OptionError(
                f"{option} {asked} came, but {launcher} started {started}; leave it out, or start "
                "as many"
            )
    found = Processes(*(there or (devices or 1, nodes or 1)), strategy)
    if strategy == "fsdp" and found.count == 1:
        raise OptionError(
            "--strategy fsdp shares out the parameters, and one process came: add --devices"
        )
    if found.nodes > 1 and launcher is None:
        raise OptionError(
            f"--num-nodes {found.nodes} came without a launcher: start the command with torchrun "
            "or srun on every node"
        )
    if found.count > 1 and where.type == "mps":
        raise OptionError(
            f"{found.count} processes were asked for, but there is one MPS device: choose "
            "--devices 1, or --device cpu"
        )
    if where.type == "cuda" and found.devices > 1:
        if where.index is not None:
            raise OptionError(
                f"--device {device} names one GPU, but --devices {found.devices} came: choose "
                "--device cuda (CUDA_VISIBLE_DEVICES says which)"
            )
        if found.devices > torch.cuda.device_count():
            raise OptionError(
                f"--devices {found.devices} came, but there are {torch.cuda.device_count()} GPUs "
                "here: choose as many or fewer"
            )
    return found


def started_by() -> tuple[str | None, tuple[int, int] | None]:
    """The launcher's name and its (devices, nodes); None and None where there is none.

    Raises:
        OptionError: SLURM was asked for tasks in a way that Lightning can't use.
    """
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    environment = os.environ
    if TorchElasticEnvironment.detect():
        here, everywhere = int(environment["LOCAL_WORLD_SIZE"]), int(environment["WORLD_SIZE"])
        return "torchrun", (here, everywhere // here)
    with quiet_lightning():
        slurm = SLURMEnvironment.detect()
    tasks, nodes = (int(environment.get(f"SLURM_{name}", 1)) for name in ("NTASKS", "NNODES"))
    if slurm and tasks > 1:
        try:
            SLURMEnvironment()
        except RuntimeError as error:  # it wants --ntasks-per-node
            raise OptionError(f"SLURM: {error}") from error
        return "SLURM", (tasks // nodes, nodes)
    return None, None


def own(device: torch.device) -> torch.device:
    """Where this process computes, all of them on devices of this kind."""
    if device.type == "cuda" and count() > 1:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def is_up() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Which process this is, from 0."""
    return dist.get_rank() if is_up() else 0


def count() -> int:
    """How many there are."""
    return dist.get_world_size() if is_up() else 1


def is_first() -> bool:
    """Whether this process writes files and speaks: one of them does."""
    return rank() == 0


def from_first(value: Value) -> Value:
    """The first process's value (picklable), in all of them."""
    if count() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def of_all(value: Value) -> list[Value]:
    """Every process's value (picklable), by rank, in all of them."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def leave() -> bool:
    """Part from the others, when all have come so far: one that left early would upset them.

    Returns: whether this was the first one, who speaks.
    """
    first = is_first()
    if is_up():
        dist.barrier()
        dist.destroy_process_group()
    return first


@contextmanager
def in_company() -> Iterator[None]:
    """A block in which processes wait for each other.

    Raises:
        ProcessError: another one is gone; its own error says why.
    """
    try:
        yield
    except RuntimeError as error:
        closed = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
        gone = isinstance(error, dist.DistError) or any(words in str(error) for words in closed)
        if count() > 1 and gone:
            raise ProcessError(
                f"process {rank() + 1} of {count()} ends, since another one did; that one's "
                "error says why"
            ) from error
        raise


@contextmanager
def together() -> Iterator[None]:
    """A block after which all go on, or none: the first error of any is raised in each.

    Nothing inside may wait for the other processes.

    Raises:
        ElaProbeError: what one of them raised.
    """
    error: ElaProbeError | None = None
    try:
        yield
    except ElaProbeError as raised:
        error = raised
    first = next((found for found in of_all(error) if found is not None), None)
    if first is not None:
        raise error or first
