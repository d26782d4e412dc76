"""Calling a model: its inputs (nested tensors), its outputs, and its train or eval mode."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ela_probe.errors import DataError, ModelError


def call(model: nn.Module, inputs: Any) -> Any:
    """Run a model on a tensor, a tuple of arguments or a dict of keyword arguments.

    Raises:
        DataError: its forward takes no such arguments; the message names those that it takes.
    """
    args, kwargs = arguments_of(inputs)
    try:
        return model(*args, **kwargs)
    except TypeError as error:
        signature = _signature(model)
        try:
            signature.bind(*args, **kwargs)
        except TypeError as mismatch:
            raise DataError(_wrong_arguments(model, signature, inputs, mismatch)) from error
        raise


def arguments_of(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that a batch stands for: a dict is keyword arguments, a sequence positional."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, Sequence) and not isinstance(inputs, str):
        return tuple(inputs), {}
    return (inputs,), {}


def _signature(model: nn.Module) -> inspect.Signature:
    while isinstance(model, nn.parallel.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    return inspect.signature(model.forward)


def _wrong_arguments(
    model: nn.Module, signature: inspect.Signature, inputs: Any, mismatch: TypeError
) -> str:
    needed: list[str] = []
    optional: list[str] = []
    for name, parameter in signature.parameters.items():
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            (needed if parameter.default is parameter.empty else optional).append(name)
    if isinstance(inputs, Mapping):
        got = f"a batch with the keys {', '.join(map(str, inputs)) or '(none)'}"
    elif isinstance(inputs, Sequence) and not isinstance(inputs, str):
        got = f"a batch of {len(inputs)} arguments"
    else:
        got = f"a batch that is one {type(inputs).__name__}"
    takes = ", ".join(needed + [f"{name} (optional)" for name in optional])
    return (
        f"got {got}, but the model's forward takes {takes or 'no arguments'} ({mismatch}); give a "
        "dict with these keys, or a tuple in this order"
    )


def inputs_and_labels(batch: Any, *, labelled: bool = True) -> tuple[Any, Any]:
    """Split a batch into the model's inputs and the labels (None if there are none).

    A pair (a tuple or list of two) is inputs and labels, as a DataLoader over a labelled data set
    yields it. Anything else is all inputs: a tensor, a dict of keyword
    arguments, a tuple of arguments of any other length. Pairs of arguments need a dict, or
    `labelled=False`.
    """
    if labelled and isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    return batch, None


def logits_of(output: Any) -> Tensor | None:
    """The logits in a model's output: the output itself, or its item or attribute `logits`."""
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif not isinstance(output, Tensor):
        output = getattr(output, "logits", None)
    return output if isinstance(output, Tensor) else None


def sample_count(inputs: Any) -> int:
    """The number of samples in a batch: the length of its first tensor. Raises DataError."""
    first = next(tensors_of(inputs), None)
    if first is None or not first.ndim:
        raise DataError(
            f"got a batch that is a {type(inputs).__name__} without a tensor; expected a tensor "
            "(N, ...), or a tuple or dict of tensors"
        )
    return len(first)


def first_samples(inputs: Any, limit: int) -> Any:
    """At most `limit` samples of a batch: every tensor as long as the first one is cut."""
    count = sample_count(inputs)
    return mapped(inputs, lambda t: t[:limit] if t.ndim and len(t) == count else t)


def mapped(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nested tuples and dicts with every tensor changed; lists become tuples."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, Mapping):
        return {key: mapped(value, change) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(mapped(value, change) for value in inputs)
    return inputs


def moved(inputs: Any, model: nn.Module) -> Any:
    """Inputs on the device of the model's parameters."""
    device = next((p.device for p in model.parameters()), None)
    return mapped(inputs, lambda tensor: tensor.to(device))


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, dicts and data classes, detached, in order."""
    if isinstance(value, Tensor):
        yield value.detach()
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_of(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_of(getattr(value, field.name))


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """A block with every module in eval mode; each module's mode is restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; modes and random state are restored afterwards."""
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)), torch.no_grad(), eval_mode(model):
        yield


def check_has_values(model: nn.Module) -> None:
    """Raise ModelError for a model on the meta device, which has shapes but no values."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    empty = next((name for name, tensor in tensors if tensor.is_meta), None)
    if empty is not None:
        raise ModelError(
            f"{empty} of this model is on the meta device: it has a shape but no values; call "
            "model.to_empty(device='cpu') and load the weights, or build the model outside "
            "`torch.device('meta')`"
        )


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel or DistributedDataParallel.

    Raises:
        ModelError: it or a part of it was compiled or scripted: hooks may silently never fire.
    """
    while isinstance(model, nn.parallel.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    for name, module in model.named_modules():
        scripted = isinstance(module, torch.jit.ScriptModule)
        compiled = hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        if scripted or compiled:
            how = "scripted" if scripted else "compiled"
            raise ModelError(
                f"{f'{name} in this model' if name else 'this model'} was {how}, and hooks on a "
                f"{how} module may never fire; probe the module that was given to "
                f"torch.{'jit' if scripted else 'compile'}, in a fresh copy"
            )
    return model
