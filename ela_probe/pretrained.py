"""Directories that `save_pretrained` of transformers writes: a model's config, weights, tokenizer.

Nothing is fetched from a network. A pruned model's config names its plans under KEY; the parameters
of its stand-ins, which transformers doesn't know, lie in a file of their own beside its weights.
"""

import hashlib
import json
import logging
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ela_probe.errors import CheckpointError
from ela_probe.models.bounded_build import bounded_build
from ela_probe.spreading import Spread
from ela_probe.system.checkpoint_file import KEY
from ela_probe.system.extras import accelerate, transformers
from ela_probe.system.outputs import refuse_other_folder
from ela_probe.system.reading import check_regular_files, read_document, refusing
from ela_probe.system.storage import replacing_folder

CONFIG = "config.json"
EXPECTED = "a directory that save_pretrained of transformers wrote"
STAND_INS = "ela_probe.safetensors"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".index.json")


def read_config(path: Path) -> dict[str, Any]:
    """The config in a directory. Raises CheckpointError: there is none, or it is no JSON object."""
    text = read_document(path / CONFIG, what="the config", expected=EXPECTED, error=CheckpointError)
    with refusing(CheckpointError, f"cannot read {path / CONFIG}", f"expected {EXPECTED}"):
        config = json.loads(text)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path / CONFIG} holds no JSON object; write the directory again")
    return config


def read_network(
    path: Path,
    *,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    spread: Spread | None = None,
) -> tuple[nn.Module, tuple[str, ...]]:
    """The unpruned network of a directory, on the CPU in eval mode, and the weights it lacks.

    The class is the one that the config names, or that of an audio classifier or of a causal
    language model, as its type says. It keeps no cache, and one that
    sums its layers drops none in training.

    Args:
        dtype: of the weights; None: as stored.
        trust_remote_code: whether code in the directory may be run.
        spread: how it is spread over devices, memory and disk; None: all of it is in memory.

    Raises:
        OptionError: transformers or accelerate is missing.
        CheckpointError: transformers can't read the directory.
    """
    library, config = transformers(), read_config(path)
    problem, advice = f"transformers {library.__version__} can't read {path}", ""
    if config.get("auto_map") and not trust_remote_code:
        advice = "the directory has code of its own: pass --trust-remote-code if you trust it"
    tensors, numbers = _check_size(path, config, advice or f"expected {EXPECTED}")
    asked = f"the config in {path} asks for a network"
    placement: dict[str, Any] = {}
    folder: tempfile.TemporaryDirectory[str] | None = None
    if spread is not None:
        accelerate()
        folder = tempfile.TemporaryDirectory(prefix="ela-probe-weights-")
        placement = {
            "device_map": spread.device_map,
            "max_memory": dict(spread.max_memory) or None,
            "offload_folder": folder.name,
        }
    with (
        refusing(CheckpointError, problem, advice),
        bounded_build(asked, tensors=tensors, numbers=numbers),
        quiet(),
    ):
        named = next(iter(config.get("architectures") or ()), "")
        network = getattr(library, named, None) if not config.get("auto_map") else None
        model, info = (network or _class_of_type(library, config)).from_pretrained(
            str(path),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            dtype=dtype or "auto",
            output_loading_info=True,
            **placement,
        )
        if folder is not None:
            weakref.finalize(model, folder.cleanup)
        for part in (model.config, model.config.get_text_config()):
            if hasattr(part, "use_cache"):
                part.use_cache = False
            # transformers' sum over all hidden states fails in training where layers are dropped
            if getattr(part, "use_weighted_layer_sum", False) and hasattr(part, "layerdrop"):
                part.layerdrop = 0.0
        return model.eval(), tuple(sorted(info["missing_keys"]))


def _class_of_type(library: Any, config: Mapping[str, Any]) -> Any:
    """The class for a config that names none. Whisper has both kinds: it is a language model."""
    names, kind = library.models.auto.modeling_auto, config.get("model_type")
    is_audio = kind in names.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES
    if is_audio and kind not in names.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return library.AutoModelForAudioClassification
    return library.AutoModelForCausalLM


def _check_size(path: Path, config: Mapping[str, Any], advice: str) -> tuple[int, int]:
    """How many tensors, and at most how many numbers, the weights in a directory have.

    Raises:
        CheckpointError: there are no weights, a file of them is damaged, or the config asks for
            more layers than there are tensors.
    """
    check_regular_files(path, error=CheckpointError)
    tensors, numbers = 0, 0
    for file in path.glob("*.safetensors"):
        with (
            refusing(CheckpointError, f"cannot read {file}", "write the directory again"),
            safetensors.safe_open(file, "pt") as weights,
        ):
            tensors += len(weights.keys())
        numbers += 2 * file.stat().st_size  # of four bits each
    if not tensors:
        raise CheckpointError(f"{path} has no weights in safetensors files; {advice}")
    for part in (config, *config.values()):
        layers = part.get("num_hidden_layers") if isinstance(part, Mapping) else None
        if isinstance(layers, int) and layers > tensors:
            raise CheckpointError(
                f"the config in {path} asks for {layers:,} layers, but there are {tensors:,} "
                "tensors in its safetensors files; write the directory again"
            )
    return tensors, numbers


def broken_weight(path: Path) -> str | None:
    """The name of a weight in a directory that holds NaN or infinite values, read one by one."""
    for file in sorted(path.glob("*.safetensors")):
        with safetensors.safe_open(file, framework="pt") as stored:
            for name in list(stored.keys()):
                value = stored.get_tensor(name)
                if value.is_floating_point() and not value.isfinite().all():
                    return str(name)
    return None


def read_stand_ins(path: Path) -> dict[str, Tensor]:
    """The parameters of the stand-ins in a directory, by name; empty where it has none."""
    file = path / STAND_INS
    if not file.exists():
        return {}
    with refusing(CheckpointError, f"cannot read {file}", "write the directory again"):
        return safetensors.torch.load_file(file)


def write_directory(
    output: Path, model: nn.Module, *, source: Path, header: Mapping[str, Any]
) -> Path:
    """Write a model as `save_pretrained` does, with the other files of `source`.

    Args:
        output: the directory; a model's directory of that name is replaced.
        source: the directory that the model was read from.
        header: stands under KEY in the new config.

    Raises:
        OutputError: the place can't be written to, or something else lies there.
    """
    refuse_other_folder(output)
    saved: Any = model
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    stand_ins = {name: state.pop(name) for name in list(state) if "stand_in" in name.split(".")}
    with replacing_folder(output) as temporary, _full_disk_as_oserror():
        with quiet():
            saved.save_pretrained(str(temporary), state_dict=state)
        written = read_config(temporary)
        for file in source.iterdir():
            if file.is_file() and not file.name.endswith(WEIGHTS):
                shutil.copyfile(file, temporary / file.name)
        config = {**read_config(source), KEY: header}
        config |= {key: written[key] for key in ("dtype", "transformers_version") if key in written}
        text = json.dumps(config, indent=2, allow_nan=False) + "\n"
        (temporary / CONFIG).write_text(text, encoding="utf-8")
        if stand_ins:
            content = {name: tensor.contiguous() for name, tensor in stand_ins.items()}
            safetensors.torch.save_file(content, temporary / STAND_INS)
    return output


@contextmanager
def _full_disk_as_oserror() -> Iterator[None]:
    """A block in which safetensors writes files: what the system refuses is an OSError."""
    try:
        yield
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error


def digest(path: Path) -> str:
    """A SHA-256 of the config and the weights in a directory."""
    total = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.name == CONFIG or (file.is_file() and file.name.endswith(WEIGHTS)):
            total.update(file.name.encode())
            with file.open("rb") as content:
                for chunk in iter(lambda: content.read(2**20), b""):
                    total.update(chunk)
    return total.hexdigest()


def example_tokens(model: nn.Module) -> Tensor | None:
    """Seeded random token ids for a language model, int64 [2, 16]; None for any other model."""
    try:
        embedding = getattr(model, "get_input_embeddings", lambda: None)()
    except NotImplementedError:  # an audio encoder has none
        return None
    if not isinstance(embedding, nn.Embedding):
        return None
    generator = torch.Generator().manual_seed(0)
    return torch.randint(embedding.num_embeddings, (2, 16), generator=generator)


@contextmanager
def quiet() -> Iterator[None]:
    """A block without the progress bars and warnings of transformers."""
    control, placing = transformers().utils.logging, logging.getLogger("accelerate.big_modeling")
    level, shown = control.get_verbosity(), control.is_progress_bar_enabled()
    of_placing = placing.level
    control.set_verbosity(logging.ERROR)
    control.disable_progress_bar()
    placing.setLevel(logging.ERROR)
    try:
        yield
    finally:
        control.set_verbosity(level)
        placing.setLevel(of_placing)
        if shown:
            control.enable_progress_bar()
