"""The tokens of a text file, by the tokenizer in a directory of transformers."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ela_probe.data.source_files import check_text
from ela_probe.errors import DataError
from ela_probe.system.extras import transformers
from ela_probe.system.reading import check_regular_files, refusing


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a directory, never one from elsewhere and never with code of its own.

    Raises:
        DataError: there is none, or it can't be read. OptionError: transformers is missing.
    """
    check_regular_files(folder, error=DataError)
    with refusing(
        DataError,
        f"{folder} has no tokenizer that can be read",
        "save the model's own there: tokenizer.save_pretrained(DIR)",
    ):
        return transformers().AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def token_count(folder: Path) -> int:
    """The least number that is larger than every token of the tokenizer in a directory.

    Raises:
        DataError: as `load_tokenizer`, or a token is no number from 0 on.
    """
    tokenizer = load_tokenizer(folder)
    with refusing(DataError, f"the tokens of the tokenizer in {folder} can't be read"):
        tokens = tokenizer.get_vocab().values()
    if not tokens or min(tokens) < 0:
        raise DataError(
            f"the tokenizer in {folder} has no tokens, or some below 0; save the model's own "
            "there: tokenizer.save_pretrained(DIR)"
        )
    return int(max(tokens)) + 1


def read_tokens(path: Path, folder: Path) -> Tensor:
    """The whole text as token ids, int64 (N,), without special tokens.

    Args:
        path: the text, UTF-8. folder: with the tokenizer.

    Raises:
        DataError: the text is missing, empty or not UTF-8; or as `load_tokenizer`.
    """
    check_text(path)
    tokenizer = load_tokenizer(folder)
    with refusing(DataError, f"cannot read the text {path}", "expected plain text in UTF-8"):
        text = path.read_text(encoding="utf-8")
    with refusing(DataError, f"the tokenizer in {folder} can't read the text {path}"):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if not ids:
        raise DataError(f"the text {path} has no tokens; expected a plain text file")
    return torch.tensor(ids, dtype=torch.int64)
