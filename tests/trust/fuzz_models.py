"""The readers of models and of training states, for `fuzz_readers`."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests.trust import fuzz_mutations as mutations
from tests.trust.fuzz_inputs import Reader, written

WORDS = 16


def _header_and_model() -> tuple[Any, Any]:
    """A network of few and small tensors: their number is most of the time of an input."""
    from ela_probe.discovery.discover import discover
    from ela_probe.models.registry import ModelSpec
    from ela_probe.pruning.plan import SkipPlan
    from ela_probe.pruning.prune import prune

    sizes = {"dim": 8, "heads": 1, "kv_heads": 1, "vocab_size": WORDS}
    spec = ModelSpec(name="attnres2", args=sizes)
    torch.manual_seed(0)
    model = spec.build().eval()
    stages = discover(model, torch.zeros(1, 3, dtype=torch.int64)).stages
    last = stages[-1].sites[-1].name
    plan = SkipPlan.for_actions(stages, {last: "skip"})
    return {"spec": spec, "plans": [plan]}, prune(model, plan)


def _checkpoint(name: str) -> dict[str, bytes]:
    from ela_probe.checkpoint import save_checkpoint
    from ela_probe.data.opening import open_data

    def write(folder: Path) -> None:
        header, model = _header_and_model()
        spec = open_data("digits", limit=100).spec
        save_checkpoint(folder / name, model, data=spec, metrics={"val_loss": 1.0}, **header)

    return written(write)


def _read_checkpoint(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        from ela_probe.checkpoint import read_checkpoint

        checkpoint = read_checkpoint(folder / name)
        with torch.no_grad():
            checkpoint.model(torch.zeros(1, 3, dtype=torch.int64))
        assert all(bool(v.isfinite().all()) for v in checkpoint.model.state_dict().values())
        return checkpoint.header.model_dump_json()

    return read


def _published_spec(**arguments: Any) -> Any:
    from ela_probe.models.registry import ModelSpec

    return ModelSpec(name="mrla_b_resnet8", args={"head_dim": 16, **arguments})


def _foreign() -> dict[str, bytes]:
    def write(folder: Path) -> None:
        model = _published_spec(num_classes=3).build()
        state = {f"module.{name}": value for name, value in model.state_dict().items()}
        stored = {"epoch": 3, "arch": "x", "state_dict": state, "args": {"model": "y"}}
        torch.save(stored, folder / "a.pth")

    return written(write)


def _read_foreign(folder: Path) -> object:
    from ela_probe.checkpoint import read_checkpoint

    return read_checkpoint(folder / "a.pth", spec=_published_spec()).note


def three_blocks(num_classes: int = 10, in_channels: int = 3) -> Any:
    """The network whose training is resumed: one stage of four channels."""
    from ela_probe.models.attention_mechanisms import mrla_b
    from ela_probe.models.resnet import Layout, ResNet

    layout = Layout("small", (3,), (4,), "basic")
    return ResNet(layout, mrla_b(head_dim=2), num_classes=num_classes, in_channels=in_channels)


@cache
def _digits() -> Any:
    from ela_probe.data.opening import open_data

    return open_data("digits", limit=40, val_fraction=0.5)


def _train(output: Path, *, epochs: int, resume: bool = False) -> object:
    from ela_probe.models.registry import ModelSpec
    from ela_probe.pipeline.train import train
    from ela_probe.training.config import TrainConfig
    from ela_probe.training.ela.config import ELAConfig

    return train(
        ModelSpec(name=f"{__name__}:{three_blocks.__name__}"),
        _digits(),
        TrainConfig(epochs=epochs, batch_size=20, warmup_epochs=0),
        output=output,
        device="cpu",
        resume=resume,
        progress=False,
        ela=ELAConfig(skip=0.5, warmup=1, ramp=1),
    )


def _resume() -> dict[str, bytes]:
    def write(folder: Path) -> None:
        _train(folder, epochs=2)
        state = torch.load(folder / "resume.ckpt", weights_only=True)
        # As in older versions: with digests, the weights beside it would be compared first.
        del state["callbacks"]["ela_probe.History"]["sha256"]
        torch.save(state, folder / "resume.ckpt")

    return {"resume.ckpt": written(write)["resume.ckpt"]}


def _read_resume(folder: Path) -> object:
    return _train(folder, epochs=3, resume=True)


def _network() -> dict[str, bytes]:
    from tests.support.transformers_models import inkling

    layers: dict[str, Any] = {"num_hidden_layers": 2, "layer_types": ["hybrid_sliding", "hybrid"]}
    return written(lambda folder: inkling(**layers).save_pretrained(folder))


def _read_network(folder: Path) -> object:
    from ela_probe.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(f"hf:{folder}")
    assert all(bool(v.isfinite().all()) for v in checkpoint.model.state_dict().values())
    return checkpoint.header.model_dump_json()


def _tokenizer() -> dict[str, bytes]:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(("[UNK]", "a", "b", "c"))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    return {**written(lambda folder: fast.save_pretrained(folder)), "a.txt": b"a b c d " * 200}


def _read_tokenizer(folder: Path) -> object:
    from ela_probe.data.text import open_text

    data = open_text(f"text:{folder / 'a.txt'}", context=16, tokenizer=folder)
    tokens, _ = next(iter(data.loader("train", batch_size=4)))
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < data.spec.num_classes
    return data.spec.model_dump_json()


MODELS = {
    "checkpoint": Reader(
        lambda: _checkpoint("a.pt"), _read_checkpoint("a.pt"), {".pt": mutations.in_torch}
    ),
    "safetensors": Reader(
        lambda: _checkpoint("a.safetensors"),
        _read_checkpoint("a.safetensors"),
        {".safetensors": mutations.in_safetensors},
    ),
    "state-dict": Reader(_foreign, _read_foreign, {".pth": mutations.in_torch}),
    "resume": Reader(_resume, _read_resume, {".ckpt": mutations.in_torch}),
    "hf": Reader(
        _network,
        _read_network,
        {".json": mutations.some_json, ".safetensors": mutations.in_safetensors},
    ),
    "tokenizer": Reader(
        _tokenizer,
        _read_tokenizer,
        {".json": mutations.some_json, "": mutations.some_bytes},
    ),
}
