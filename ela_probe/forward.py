"""Calling a model: the inputs and labels in a batch, its outputs, and its train or eval mode."""

import copy
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from ela_probe.errors import DataError, ModelError
from ela_probe.spreading import input_device, is_spread
from ela_probe.system.messages import class_and_first_line, first_line
from ela_probe.system.nested_tensors import (
    as_tensors,
    fields_of,
    is_named_tuple,
    leaves_of,
    mapped,
    rebuilt,
)

Module = TypeVar("Module", bound=nn.Module | None)


def call(model: nn.Module, inputs: Any) -> Any:
    """Run a model on a tensor, a tuple of arguments or a dict of keyword arguments.

    Raises:
        DataError: its forward takes no such arguments; the message names those that it takes.
    """
    args, kwargs = arguments_of(inputs)
    try:
        return model(*args, **kwargs)
    except (TypeError, AttributeError) as error:
        signature = _signature(model)
        try:
            signature.bind(*args, **kwargs)
        except TypeError as mismatch:
            raise DataError(_wrong_arguments(model, signature, inputs, mismatch)) from error
        fields = fields_of(args[0]) if len(args) == 1 else None
        if fields is not None:
            raise DataError(
                f"the model does not take a {type(inputs).__name__} with the fields "
                f"{', '.join(fields)} as it is ({first_line(error)}); {NAME_THE_FIELDS}"
            ) from error
        if len(args) == 1 and not isinstance(args[0], Tensor):
            raise DataError(
                f"the model does not take a {type(args[0]).__name__} ({first_line(error)}); give "
                "what its forward takes, a tensor, a tuple of arguments or a dict"
            ) from error
        raise


NAME_THE_FIELDS = (
    "name the fields that the model is called with and that of the labels (inputs=, labels=; "
    "--batch-keys INPUTS:LABELS)"
)


def arguments_of(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that a batch stands for: a dict is keyword arguments, a sequence positional."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, Sequence) and not isinstance(inputs, str | PackedSequence):
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
    elif isinstance(inputs, Sequence) and not isinstance(inputs, str | PackedSequence):
        got = f"a batch of {len(inputs)} arguments"
    else:
        got = f"a batch that is one {type(inputs).__name__}"
    takes = ", ".join(needed + [f"{name} (optional)" for name in optional])
    advice = "give a dict with these keys, or a tuple in this order"
    if isinstance(inputs, Mapping):
        advice = f"give a dict with these keys, or {NAME_THE_FIELDS}"
    return (
        f"got {got}, but the model's forward takes {takes or 'no arguments'} ({mismatch}); {advice}"
    )


def inputs_and_labels(
    batch: Any,
    *,
    labelled: bool = True,
    inputs: str | Sequence[str] | None = None,
    labels: str | None = None,
) -> tuple[Any, Any]:
    """Split a batch into the model's inputs and the labels (None if there are none).

    A pair (a tuple or list of two) is inputs and labels, as a DataLoader over a labelled data set
    yields it. Anything else is all inputs: a tensor, a dict of keyword arguments, a tuple of
    arguments of any other length, a PackedSequence. Pairs of arguments need a dict, or
    `labelled=False`. NumPy arrays become tensors of the same type.

    A dict, a data class or a named tuple has fields, which may be named:

        >>> batch = {"image": torch.zeros(2, 3), "label": torch.ones(2), "path": ["a", "b"]}
        >>> images, targets = inputs_and_labels(batch, inputs="image", labels="label")
        >>> images.shape, targets.shape
        (torch.Size([2, 3]), torch.Size([2]))

    Args:
        inputs: one name: the model is called with that field alone; several: with these fields as
            keyword arguments; None: with all fields but the labels.
        labels: the field of the labels. In a pair the inputs are fields of its first item, the
            labels a field of its second.

    Raises:
        DataError: the batch has no such field; those that it has are listed.
    """
    pair = labelled and isinstance(batch, tuple | list) and len(batch) == 2
    if inputs is None and labels is None:
        return as_tensors(batch[0] if pair else batch), as_tensors(batch[1]) if pair else None
    first, second = batch if pair and not is_named_tuple(batch) else (batch, batch)
    targets = None if first is second else second
    if labels is not None:
        targets = _field(second, labels)
    if inputs is None:
        kept = fields_of(first) if first is second else None
        given = first if kept is None else {k: v for k, v in kept.items() if k != labels}
    elif isinstance(inputs, str):
        given = _field(first, inputs)
    else:
        given = {name: _field(first, name) for name in inputs}
    return as_tensors(given), as_tensors(targets)


def _field(value: Any, name: str) -> Any:
    fields = fields_of(value)
    if fields is None:
        raise DataError(
            f"got a batch with a {type(value).__name__} where the field {name!r} was named; "
            "expected a dict, a data class or a named tuple; leave the name out"
        )
    if name not in fields:
        raise DataError(
            f"the batch has no field {name!r}; its fields are {', '.join(fields) or 'none'}; "
            "name one of them (inputs=, labels=, --batch-keys INPUTS:LABELS)"
        )
    return fields[name]


def logits_of(output: Any) -> Tensor | None:
    """The logits in a model's output: the output itself, or its item or attribute `logits`."""
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif not isinstance(output, Tensor):
        output = getattr(output, "logits", None)
    return output if isinstance(output, Tensor) else None


def required_logits(output: Any) -> Tensor:
    """The logits in a model's output. Raises ModelError where it has none."""
    logits = logits_of(output)
    if logits is None:
        raise ModelError(
            f"the model returns a {type(output).__name__} without logits; expected logits (N, K), "
            "alone or as `logits` of the output"
        )
    return logits


def sample_count(inputs: Any) -> int:
    """The number of samples in a batch: the length of its first tensor. Raises DataError."""
    first = next(leaves_of(inputs), None)
    if isinstance(first, PackedSequence):
        return int(first.batch_sizes[0])
    if first is None or not first.ndim:
        raise DataError(
            f"got a batch that is a {type(inputs).__name__} without a tensor; expected a tensor "
            "(N, ...), or a tuple or dict of tensors"
        )
    return len(first)


def first_samples(inputs: Any, limit: int) -> Any:
    """At most `limit` samples of a batch: every tensor as long as the first one is cut."""
    count = sample_count(inputs)

    def cut(value: Any) -> Any:
        if isinstance(value, PackedSequence):
            return pack_sequence(unpack_sequence(value)[:limit], enforce_sorted=False)
        same_length = isinstance(value, Tensor) and value.ndim and len(value) == count
        return value[:limit] if same_length else value

    return rebuilt(inputs, cut)


def moved(inputs: Any, model: nn.Module) -> Any:
    """Inputs on the device of the model's parameters."""
    device = input_device(model)
    return mapped(inputs, lambda tensor: tensor.to(device))


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


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """A block in which a model, and what it calls, runs as it was before torch.compile.

    In compiled code hooks may not fire, and a function mode sees nothing. Modules that
    torch.compile returned are replaced in the model by those that it was given, so that names are
    those of the uncompiled model; afterwards they are back in their places.
    """
    if "torch._dynamo" not in sys.modules:  # torch.compile was never called
        yield
        return
    with ExitStack() as stack, torch.compiler.set_stance("force_eager"):
        for parent in list(model.modules()):
            if parent._compiled_call_impl is not None:
                stack.callback(setattr, parent, "_compiled_call_impl", parent._compiled_call_impl)
                parent._compiled_call_impl = None
            for name, part in list(parent._modules.items()):
                plain = without_compile(part)
                if plain is not part and not is_compiled_form(parent):
                    parent._modules[name] = plain
                    stack.callback(_put_back, parent, name, plain, part)
        yield


def _put_back(
    parent: nn.Module, name: str, plain: nn.Module | None, compiled: nn.Module | None
) -> None:
    """Put a compiled part back, unless its place was given to another module meanwhile."""
    if parent._modules.get(name) is plain:
        parent._modules[name] = compiled


def is_compiled_form(module: nn.Module | None) -> bool:
    """Whether this is what `torch.compile(module)` returned."""
    return module is not None and "_orig_mod" in module._modules


def without_compile(module: Module) -> Module:
    """The module that was given to torch.compile; any other module itself."""
    while is_compiled_form(module):
        module = module._modules["_orig_mod"]  # type: ignore[assignment, union-attr]
    return module


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of a model, its hooks included.

    `copy.deepcopy` refuses tensors that were computed, such as the weights under the masks of
    `torch.nn.utils.prune`. The copy gets their values, until its forward pass computes them anew.
    It also refuses a module whose class has a `__new__` with arguments; its attributes are copied.

    Raises:
        ModelError: a part of the model can't be copied.
    """
    memo: dict[int, Any] = {}
    made = [m for m in model.modules() if type(m).__new__ is not object.__new__]
    for module in model.modules():
        for value in leaves_of(vars(module)):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        for module in made:
            memo[id(module)] = object.__new__(type(module))
        for module in made:
            vars(memo[id(module)]).update(copy.deepcopy(vars(module), memo))
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError) as error:
        raise ModelError(
            f"this {type(model).__name__} cannot be copied ({class_and_first_line(error)}); keep "
            "what cannot be copied outside the model"
        ) from error


def check_has_values(model: nn.Module) -> None:
    """Raise ModelError for a model on the meta device, which has shapes but no values."""
    if is_spread(model):
        return
    tensors = (*model.named_parameters(), *model.named_buffers())
    empty = next((name for name, tensor in tensors if tensor.is_meta), None)
    if empty is not None:
        raise ModelError(
            f"{empty} of this model is on the meta device: it has a shape but no values; call "
            "model.to_empty(device='cpu') and load the weights, or build the model outside "
            "`torch.device('meta')`"
        )


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile.

    Parts of it may be compiled: see `uncompiled`.

    Raises:
        ModelError: it or a part of it was scripted: hooks may silently never fire.
    """
    while True:
        inner = without_compile(model)
        if isinstance(inner, nn.parallel.DataParallel | nn.parallel.DistributedDataParallel):
            inner = inner.module
        if inner is model:
            break
        model = inner
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{_part(name)} was scripted, and hooks on a scripted module may never fire; probe "
                "the module that was given to torch.jit, in a fresh copy"
            )
    return model


def refuse_compiled(model: nn.Module) -> None:
    """Raise ModelError where a model or a part of it was compiled, so that times would mix."""
    for name, module in model.named_modules():
        if is_compiled_form(module) or module._compiled_call_impl is not None:
            raise ModelError(
                f"{_part(name)} was compiled, and the first calls of compiled code take longer; "
                "measure the model before torch.compile"
            )


def _part(name: str) -> str:
    return f"{name} in this model" if name else "this model"
