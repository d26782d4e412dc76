"""Forward hooks that are removed together, and that do nothing on a copy of the model."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


class Hook:
    """Calls a function when its module runs; a copied or unpickled hook calls nothing.

    A module takes its hooks along when it is copied (`copy.deepcopy`, `AveragedModel`) or pickled.
    The calls of such a copy are none of the original's, and its hooks outlive those of the
    original, which nobody can remove from it.
    """

    def __init__(self, function: Callable[..., Any] | None = None) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        """Pass on what the module gives its hooks; returns what replaces it, or None."""
        return None if self._function is None else self._function(*arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Hook":
        return Hook()

    def __reduce__(self) -> tuple[type["Hook"], tuple[()]]:
        return Hook, ()

    def close(self) -> None:
        """Call nothing from now on, wherever the hook is still registered."""
        self._function = None


class Hooks:
    """The forward hooks of one owner."""

    def __init__(self) -> None:
        self._hooks: list[tuple[Hook, RemovableHandle]] = []

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def before(
        self, module: nn.Module, function: Callable[..., None], *, first: bool = False
    ) -> None:
        """Call function(module, inputs, keyword inputs) before the module runs.

        first: before the hooks that are registered already.
        """
        hook = Hook(function)
        handle = module.register_forward_pre_hook(hook, prepend=first, with_kwargs=True)
        self._hooks.append((hook, handle))

    def after(
        self, module: nn.Module, function: Callable[..., Any], *, always: bool = False
    ) -> None:
        """Call function(module, inputs, output) after the module ran.

        What it returns replaces the output, unless it is None.
        always: also when it raised, with None as output.
        """
        hook = Hook(function)
        handle = module.register_forward_hook(hook, always_call=always)
        self._hooks.append((hook, handle))

    def remove(self) -> None:
        """Remove these hooks, and no others."""
        for hook, handle in self._hooks:
            hook.close()
            handle.remove()
        self._hooks.clear()
