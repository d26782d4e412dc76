"""KeptDetections: the boxes that a detector finds under each action, for its average precision.

Average precision is no sum over images: all detections are needed at once. They are kept in a file
for each batch, so that an ablation that was interrupted loses none.
"""

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ela_probe.errors import PlanError
from ela_probe.evaluation.detections import DetectionPrecision
from ela_probe.system.array_files import read_arrays
from ela_probe.system.reading import read_bytes
from ela_probe.system.storage import write_bytes

FOUND, PRESENT = ("boxes", "labels", "scores"), ("boxes", "labels", "area", "iscrowd")
TARGETS, UNCHANGED = "targets", "unchanged"

Arrays = Mapping[str, NDArray[np.generic]]


class KeptDetections:
    """Files `batch-0.npz`, ... in a folder. Masks are not kept: they are far larger than boxes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, batch: int, cases: Mapping[str, Arrays]) -> str:
        """Write what was found in a batch, and return the SHA-256 of its file.

        Args:
            batch: its number, from 0.
            cases: the results of `joined` by case; that of TARGETS is what there is to find.

        Raises:
            OutputError: the folder can't be written to.
        """
        buffer = io.BytesIO()
        arrays = {f"{case}/{n}": a for case, own in cases.items() for n, a in own.items()}
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        write_bytes(self._file(batch), buffer.getvalue())
        return hashlib.sha256(buffer.getvalue()).hexdigest()

    def check(self, digests: Sequence[str]) -> None:
        """Raise PlanError unless the files are those that `write` returned these digests for."""
        for batch, digest in enumerate(digests):
            content = read_bytes(
                self._file(batch), what="the detections of the ablation",
                expected="a file that `ela-probe ablate` wrote", error=PlanError,
            )  # fmt: skip
            if hashlib.sha256(content).hexdigest() != digest:
                raise PlanError(
                    f"{self._file(batch)} is not the file that the ablation was written with; "
                    "leave out --resume to start again"
                )

    def precision(self, case: str, *, batches: int) -> float | None:
        """The average precision of a case's boxes over so many batches.

        None where there is no object to find, or where a batch does not have the case.
        """
        figures = DetectionPrecision(masks=False)
        for batch in range(batches):
            with self._file(batch).open("rb") as file:
                arrays = read_arrays(file, lambda n: n.rpartition("/")[0] in (case, TARGETS))
            if f"{case}/counts" not in arrays:
                return None
            figures.update(_images(arrays, case, FOUND), _images(arrays, TARGETS, PRESENT))
        return figures.compute().box.ap

    def remove(self) -> None:
        """Remove the files, and the folder where it is empty then."""
        for file in self.folder.glob("batch-*.npz"):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # there is none, or something else is in it
            self.folder.rmdir()

    def _file(self, batch: int) -> Path:
        return self.folder / f"batch-{batch}.npz"


def joined(images: Iterable[Mapping[str, Tensor]]) -> Arrays:
    """The detections, or the objects, of all images of a batch one after the other.

    Args:
        images: for each, tensors [n, ...] by name; masks are left out.

    Returns: an array for each name, and `counts`, the n of each image.
    """
    images = list(images)
    names = [n for n in dict.fromkeys((*FOUND, *PRESENT)) if all(n in image for image in images)]
    return {
        "counts": np.array([len(image["boxes"]) for image in images]),
        **{name: torch.cat([_plain(image[name]) for image in images]).numpy() for name in names},
    }


def _plain(values: Tensor) -> Tensor:
    """On the CPU, in a type that NumPy has."""
    values = values.detach().cpu()
    return values.float() if values.is_floating_point() and values.itemsize < 4 else values


def _images(arrays: Arrays, case: str, names: Sequence[str]) -> list[dict[str, Tensor]]:
    """The inverse of `joined`."""
    counts = arrays[f"{case}/counts"].tolist()
    parts = {
        name: torch.from_numpy(arrays[f"{case}/{name}"]).split(counts)
        for name in names
        if f"{case}/{name}" in arrays
    }
    return [{name: own[k] for name, own in parts.items()} for k in range(len(counts))]
