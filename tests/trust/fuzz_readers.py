"""The readers of the package: a valid input of each, how it is mutated, and what is done with it.

An input is a folder of small files. A reader reads it and uses what it read as the verbs do: a
wrong value that is accepted fails here. Anything but success or an ElaProbeError is wrong.
"""

import csv
import gzip
import io
import json
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.trust import fuzz_mutations as mutations
from tests.trust.fuzz_inputs import Reader, written
from tests.trust.fuzz_models import MODELS

# What some readers import when they are called first; the processes of `fuzz` share it.
IMPORTS = (
    "ela_probe.analysis.result", "ela_probe.checkpoint", "ela_probe.data.images",
    "ela_probe.pipeline.train", "ela_probe.report.page", "ela_probe.training.trainer", "pandas",
    "pytorch_lightning", "scipy.stats", "seaborn", "sklearn.datasets", "tests.support.planning",
    "transformers.modeling_utils",
)  # fmt: skip


@cache
def _analysis() -> Any:
    from ela_probe.analysis.damage import StageDamage
    from tests.support.planning import analysis_of

    analysis = analysis_of([3, 2])
    random = np.random.default_rng(0)
    stages = []
    for part in analysis.stages:
        sites = len(part.stage.sites)
        sums = np.abs(random.normal(size=(sites, 3, 4)))
        stand_ins = tuple(random.normal(size=(2, 3)).astype(np.float32) for _ in range(sites))
        damage = StageDamage(20, sums, np.ones(sites), stand_ins)
        stages.append(replace(part, damage=damage))
    return replace(analysis, stages=tuple(stages))


def _plan() -> dict[str, bytes]:
    from ela_probe.pruning.planners import make_plan

    def write(folder: Path) -> None:
        plan = make_plan(_analysis(), skip=0.3, action="affine")
        plan.save(folder / "plan.json")

    return written(write)


def _read_plan(folder: Path) -> object:
    from ela_probe.pruning.plan import SkipPlan

    plan = SkipPlan.load(folder / "plan.json")
    _ = (plan.stand_ins, plan.share, repr(plan), plan._repr_html_(), plan.model_dump_json())
    plan.check_sites([part.stage for part in _analysis().stages])
    return plan


def _costs() -> dict[str, bytes]:
    from tests.support.costs import PRICES, costs_of, priced

    def write(folder: Path) -> None:
        stages = [part.stage for part in _analysis().stages]
        costs_of([priced(s, PRICES) for s in stages], of=stages).save(folder / "costs.json")

    return written(write)


def _read_costs(folder: Path) -> object:
    from ela_probe.pruning.cost_model import CostModel
    from ela_probe.pruning.planners import make_plan

    costs = CostModel.load(folder / "costs.json")
    costs._repr_html_()
    return make_plan(_analysis(), planner="cost", costs=costs, time=0.8).model_dump_json()


def _analysis_files() -> dict[str, bytes]:
    return written(lambda folder: _analysis().save(folder))


def _with_digests(files: dict[str, bytes]) -> dict[str, bytes]:
    """An analysis whose digests are those of its other files, so that they are read at all."""
    try:
        document = json.loads(files["analysis.json"])
        digests = {n: sha256(c).hexdigest() for n, c in files.items() if n != "analysis.json"}
        text = json.dumps({**document, "sha256": digests})
    except (KeyError, TypeError, ValueError, RecursionError):
        return files
    return {**files, "analysis.json": text.encode()}


def _read_analysis(folder: Path) -> object:
    from ela_probe.analysis.findings import findings
    from ela_probe.analysis.result import Analysis
    from ela_probe.pruning.planners import make_plan
    from ela_probe.system.csv_files import csv_text

    analysis = Analysis.load(folder)
    _ = (csv_text(analysis.sites), csv_text(analysis.pairs), findings(analysis))
    _ = (repr(analysis), analysis._repr_html_(), json.dumps(analysis.summary(), allow_nan=False))
    return make_plan(analysis, skip=0.3).model_dump_json()


def _read_report(folder: Path) -> object:
    from ela_probe.analysis.result import Analysis
    from ela_probe.report.page import write_report

    return write_report(Analysis.load(folder), folder / "report.html", resamples=2)


def _ablation() -> dict[str, bytes]:
    from ela_probe.pruning.ablation import Ablation, Change, PlanResult

    sites = [site.name for part in _analysis().stages for site in part.stage.sites]
    changes = tuple(Change(site=s, action="skip", loss=2.0, square=1.0) for s in sites)
    result = PlanResult(
        name="a", planner="damage", action="skip", skipped=1, loss=1.0, accuracy=0.5
    )
    ablation = Ablation(
        batches=1, samples=20, loss=20.0, accuracy=10.0, complete=True, changes=changes,
        plans=(result,),
    )  # fmt: skip
    return written(lambda folder: ablation.save(folder / "ablation.json"))


def _read_ablation(folder: Path) -> object:
    from ela_probe.pruning.ablation import Ablation

    ablation = Ablation.load(folder / "ablation.json")
    ablation.check_sites([part.stage for part in _analysis().stages])
    return [(c.mean(ablation.samples), c.error(ablation.samples)) for c in ablation.changes]


def _comparison() -> dict[str, bytes]:
    from tests.support.comparisons import of_analysis

    return written(lambda folder: of_analysis(_analysis()).save(folder / "comparison.json"))


def _read_comparison(folder: Path) -> object:
    from ela_probe.evaluation.comparison import Comparison

    comparison = Comparison.load(folder / "comparison.json")
    _ = (comparison.table(), comparison.to_frame(), json.dumps(comparison.to_dict()))
    comparison.check_sites([part.stage for part in _analysis().stages])
    return comparison


def _recipe() -> dict[str, bytes]:
    from ela_probe.training.recipes import built_in

    return {"r.yaml": built_in()["cifar10-kcla"].read_bytes()}


def _read_recipe(folder: Path) -> object:
    from ela_probe.training.recipes import read_recipe

    recipe = read_recipe(folder / "r.yaml")
    _ = (recipe.config("images"), recipe.ela_config(), recipe.model_dump_json())
    return recipe.model_spec("mrla_b_resnet8")


SITES = b"""# where a model retrieves
[[stage]]
name = "a"
regex = '(stages\\.\\d+)\\.(\\d+)\\.retrieval'
group = 1
reads = "inputs"
axis = -1
tensor = 0
calls = 2

[[stage]]
modules = ["stages.*.*.retrieval", "**.tap"]
kind = "softmax"
sources = [1, 2, 3]
"""


def _read_sites(folder: Path) -> object:
    from ela_probe.discovery.sites_file import SitesFile

    names = [f"stages.{s}.{t}.retrieval" for s in range(3) for t in range(9)]
    return [stage.grouped(names) for stage in SitesFile.load(folder / "s.toml").stage]


def _npz() -> dict[str, bytes]:
    def write(folder: Path) -> None:
        random = np.random.default_rng(0)
        for split, count in (("train", 24), ("test", 9)):
            images = random.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
            labels = np.arange(count) % 3
            np.savez_compressed(
                folder / f"d-{split}.npz", images=images, labels=labels, classes=["a", "b", "c"]
            )

    return written(write)


def _read_npz(folder: Path) -> object:
    return _read_batch(f"npz:{folder / 'd'}")


def _read_batch(source: str, **options: Any) -> object:
    import warnings

    from ela_probe.data.images import open_images
    from ela_probe.errors import DataWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        data = open_images(source, **options)
    for split in ("train", "test"):
        images, labels = next(iter(data.loader(split, batch_size=8, num_workers=0)))
        assert bool(images.isfinite().all())
        assert labels.dtype == torch.int64
        assert 0 <= int(labels.min()) <= int(labels.max()) < data.spec.num_classes
    return data.spec.model_dump_json()


def _idx() -> dict[str, bytes]:
    random, files = Random(0), {}
    for stem, count, suffix in (("train", 8, ".gz"), ("t10k", 4, "")):
        images = b"\x00\x00\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
        labels = (
            b"\x00\x00\x08\x01" + count.to_bytes(4, "big") + bytes(i % 10 for i in range(count))
        )
        images += random.randbytes(count * 784)
        for name, content in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            packed = gzip.compress(content, 1) if suffix else content
            files[f"{stem}-{name}{suffix}"] = packed
    return files


def _read_idx(folder: Path) -> object:
    from ela_probe.data.idx import read_fashion_mnist_split

    for split in ("train", "test"):
        images, labels = read_fashion_mnist_split(folder, split)
        assert images.shape == (len(labels), 1, 32, 32)
        assert 0 <= int(labels.min()) <= int(labels.max()) < 10
    return None


FORMATS = {"png": "PNG", "jpg": "JPEG", "ppm": "PPM", "bmp": "BMP", "tif": "TIFF", "webp": "WEBP"}


def _images() -> dict[str, bytes]:
    random, files = np.random.default_rng(0), {}
    for i, (suffix, kind) in enumerate(FORMATS.items()):
        buffer = io.BytesIO()
        image = Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8))
        (image.convert("P") if i % 3 == 0 else image).save(buffer, kind)
        files[f"train/{'ab'[i % 2]}/{i}.{suffix}"] = buffer.getvalue()
    for name in "ab":
        files[f"val/{name}/0.png"] = files["train/a/0.png"]
    buffer = io.BytesIO()
    Image.fromarray(random.integers(0, 60000, (20, 24), dtype=np.uint16)).save(buffer, "PNG")
    return {**files, "val/a/1.png": buffer.getvalue()}


def _read_images(folder: Path) -> object:
    return _read_batch(f"folder:{folder}")


def _read_imagenet(folder: Path) -> object:
    return _read_batch(f"imagenet:{folder}", image_size=32)


def _read_text(folder: Path) -> object:
    from ela_probe.data.text import open_text

    data = open_text(f"text:{folder / 'a.txt'}", context=16)
    tokens, following = next(iter(data.loader("train", batch_size=4)))
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < 256
    assert torch.equal(tokens[:, 1:], following[:, :-1])
    return data.spec.model_dump_json()


def _model_args() -> dict[str, bytes]:
    return {"args.json": b'{"head_dim": 16, "num_classes": 3, "in_channels": 3}'}


def _read_model_args(folder: Path) -> object:
    from cli.options import parse_model_args
    from ela_probe.models.registry import ModelSpec

    text = (folder / "args.json").read_bytes().decode("utf-8", "surrogateescape")
    arguments = parse_model_args(text)
    return ModelSpec(name="mrla_b_resnet8", args=arguments).model_dump()


def _history() -> dict[str, bytes]:
    columns = ("epoch", "lr", "train_loss", "val_accuracy", "skipped")
    metrics, sites = io.StringIO(), io.StringIO()
    csv.writer(metrics).writerows([columns, *[(e, 0.1, 1.5, 0.5, 0.1) for e in (1, 2, 3)]])
    rows = [("epoch", "stage", "site", "action", "kl", "damage"), (1, "s", "s.0", "keep", 0.1, 0.2)]
    csv.writer(sites).writerows(rows)
    return {"metrics.csv": metrics.getvalue().encode(), "ela.csv": sites.getvalue().encode()}


def _read_history(folder: Path) -> object:
    from ela_probe.report.history import History

    history = History.load(folder / "metrics.csv")
    return history.skips, history.measured


def _some_text(random: Random, content: bytes) -> bytes:
    return random.choice((mutations.some_bytes, mutations.some_words))(random, content)


READERS: dict[str, Reader] = {
    **MODELS,
    "plan": Reader(_plan, _read_plan, {"": mutations.some_json}),
    "costs": Reader(_costs, _read_costs, {"": mutations.some_json}),
    "analysis": Reader(
        _analysis_files,
        _read_analysis,
        {
            ".json": mutations.some_json,
            ".npz": mutations.in_zip(mutations.other_array),
            "": mutations.some_bytes,
        },
        _with_digests,
    ),
    "report": Reader(
        _analysis_files,
        _read_report,
        {
            ".json": mutations.some_json,
            ".npz": mutations.in_zip(mutations.other_array),
            "": mutations.some_bytes,
        },
        _with_digests,
    ),
    "ablation": Reader(_ablation, _read_ablation, {"": mutations.some_json}),
    "comparison": Reader(_comparison, _read_comparison, {"": mutations.some_json}),
    "recipe": Reader(_recipe, _read_recipe, {"": _some_text}),
    "sites": Reader(lambda: {"s.toml": SITES}, _read_sites, {"": _some_text}),
    "npz": Reader(_npz, _read_npz, {"": mutations.in_zip(mutations.other_array)}),
    "idx": Reader(
        _idx,
        _read_idx,
        {".gz": mutations.in_gzip(mutations.some_bytes), "": mutations.some_bytes},
    ),
    "folder": Reader(_images, _read_images, {"": mutations.in_png}),
    "imagenet": Reader(_images, _read_imagenet, {"": mutations.in_png}),
    "text": Reader(lambda: {"a.txt": b"some text. " * 60}, _read_text, {"": _some_text}),
    "model-args": Reader(_model_args, _read_model_args, {"": mutations.some_json}),
    "history": Reader(_history, _read_history, {"": _some_text}),
}
