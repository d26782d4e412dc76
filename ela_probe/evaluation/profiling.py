"""What a model costs: FLOPs, latency of training and inference, peak memory, and on which machine.

Copies of the models take turns within one run, so that a busy machine slows all of them alike.
"""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ela_probe.errors import OptionError
from ela_probe.evaluation.comparison import Latency, Machine, PeakMemory, Timing
from ela_probe.evaluation.objectives import objective_of
from ela_probe.evaluation.peak_memory import peak_bytes
from ela_probe.forward import call, copied
from ela_probe.system.memory_format import to_memory_format
from ela_probe.system.nested_tensors import leaves_of, mapped
from ela_probe.system.progress import bar

Step = Callable[[], object]


def count_flops(
    model: nn.Module, input_shape: Sequence[int], *, dtype: torch.dtype | None = None
) -> int:
    """Floating-point operations of one sample's forward pass in eval mode, by torch's counter.

    It counts convolutions and matrix products, where a multiplication and an addition are two
    operations. It does not count elementwise work, such as normalisation, activations, MRLA-B's
    weighted sum of its sources or AttnRes's retrievals. So a skipped retrieval saves time and
    memory that FLOPs don't show.

    Args:
        input_shape: of one sample, (C, H, W) or (tokens,).
        dtype: of the sample; the parameters' dtype when None.
    """
    model = copied(model).eval()
    parameter = next(model.parameters(), torch.empty(0))
    sample = torch.zeros((1, *input_shape), device=parameter.device, dtype=dtype or parameter.dtype)
    # The plain kernel's products are counted the same in every version and on every device.
    plain = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
        model(sample)
    return int(counter.get_total_flops())


def measure_latency(
    models: Mapping[str, nn.Module],
    batch: tuple[Any, Any],
    *,
    device: torch.device | None = None,
    repeats: int = 10,
    warmup: int = 2,
    progress: bool = True,
) -> dict[str, Latency]:
    """Time all models in turns on one batch. Ratios are to the first model.

    A training step is forward, the loss, backward, a step of SGD with momentum at learning
    rate 0 (the same arithmetic, but the weights don't change) and zero_grad, in the memory format
    of training (`memory_format.to_memory_format`). The given models stay unchanged, and so does the
    random state.

    Args:
        models: by name.
        batch: inputs and labels, as `evaluate` takes them.
        device: where to measure; the inputs' device when None.
        repeats: rounds; in each round, every model takes one step.
        warmup: rounds before that, which don't count.

    Raises:
        OptionError: no models, or fewer than one round.
    """
    if not models:
        raise OptionError("no model to measure; name at least one")
    device, inputs, targets = placed(batch, device)
    taken: dict[str, dict[str, list[float]]] = {}
    with torch.random.fork_rng(devices=cuda_devices(device)):
        for kind, build in (("training", training_step), ("inference", inference_step)):
            steps = {
                name: build(copied(model).to(device), formatted(inputs, model), targets)
                for name, model in models.items()
            }
            taken[kind] = alternate(
                steps,
                rounds=repeats,
                warmup=warmup,
                device=device,
                description=f"timing {kind}",
                progress=progress,
            )
    first = next(iter(models))
    return {
        name: Latency(
            training=Timing.of(taken["training"][name], taken["training"][first]),
            inference=Timing.of(taken["inference"][name], taken["inference"][first]),
        )
        for name in models
    }


def measure_memory(
    model: nn.Module, batch: tuple[Any, Any], *, device: torch.device | None = None
) -> PeakMemory:
    """Peak memory of a training step and of inference on a batch (`evaluation.peak_memory`).

    Args:
        batch: inputs and labels, as `evaluate` takes them. device: the inputs' device when None.
    """
    device, inputs, targets = placed(batch, device)
    peaks = {}
    with torch.random.fork_rng(devices=cuda_devices(device)):
        for kind, build in (("training", training_step), ("inference", inference_step)):
            step = build(copied(model).to(device), formatted(inputs, model), targets)
            step()  # so that the momentum buffers are allocated before
            peaks[kind] = peak_bytes(step, device)
    return PeakMemory(**peaks)


def alternate(
    contestants: Mapping[str, Step],
    *,
    rounds: int,
    warmup: int = 0,
    device: torch.device | None = None,
    description: str = "timing",
    progress: bool = True,
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round. The order within a round rotates.

    Args:
        contestants: by name; each is called once a round.
        rounds: rounds that count. warmup: rounds before them, which don't.
        device: it is synchronised before and after each call.

    Raises:
        OptionError: fewer than one round, or a negative warm-up.
    """
    if rounds < 1 or warmup < 0:
        raise OptionError(
            f"got {rounds} rounds after {warmup} of warm-up; expected at least 1 after at least 0"
        )
    device = device or torch.device("cpu")
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with bar(progress=progress) as shown:
        for number in shown.track(range(warmup + rounds), description=description):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                synchronize(device)
                start = time.perf_counter()
                contestants[name]()
                synchronize(device)
                if number >= warmup:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def describe_machine(device: torch.device | None = None) -> Machine:
    """The machine and the device of a measurement that runs now."""
    device = device or torch.device("cpu")
    cpu = cpu_name()
    return Machine(
        platform=platform.platform(),
        cpu=cpu,
        cpu_count=os.cpu_count() or 1,
        torch_threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=str(torch.__version__),
        device=str(device),
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
    )


def training_step(model: nn.Module, inputs: Any, targets: Any) -> Step:
    """A training step that changes no weights: forward, backward, and an update by lr 0."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    objective = objective_of(model)

    def step() -> None:
        objective.training_loss(model, inputs, targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference_step(model: nn.Module, inputs: Any, targets: Any) -> Step:
    """A forward pass in eval mode without gradients."""
    model.eval()

    @torch.inference_mode()
    def step() -> Any:
        return call(model, inputs)

    return step


def placed(batch: tuple[Any, Any], device: torch.device | None) -> tuple[torch.device, Any, Any]:
    """The device, that of the inputs when None, and the batch's inputs and targets there."""
    where = device or first_tensor(batch[0]).device
    inputs, targets = (mapped(part, lambda t: t.to(where)) for part in batch)
    return where, inputs, targets


def formatted(inputs: Any, model: nn.Module) -> Any:
    """The inputs in the memory format that the model should compute in."""
    return mapped(inputs, lambda tensor: to_memory_format(tensor, model))


def first_tensor(inputs: Any) -> Tensor:
    """The first tensor in nested containers, whose first axis runs over the samples."""
    return next(leaf for leaf in leaves_of(inputs) if isinstance(leaf, Tensor))


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def cuda_devices(device: torch.device) -> list[torch.device]:
    """What torch's random state must be forked on for work on a device."""
    return [device] if device.type == "cuda" else []


def cpu_name() -> str:
    """The name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
