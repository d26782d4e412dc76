"""Coverage-guided fuzzing with atheris: `python -m tests.trust.fuzz_coverage READER`.

Atheris is an optional tool (`pip install atheris`; it has wheels for Linux). It keeps inputs that
reach new lines of this package or of the parsers in Python below it, and changes these further. An
input is the content of the reader's first file; the first one is valid. A wrong outcome ends the
run, and its input lies in the working directory as crash-SHA1.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.trust.fuzz_inputs import write
from tests.trust.fuzz_judge import judge

PARSERS = ["json", "csv", "tomllib", "yaml", "zipfile", "gzip"]


def main() -> None:
    """The command; options behind READER are libFuzzer's, such as -runs=100000."""
    import atheris

    with atheris.instrument_imports(include=["ela_probe", *PARSERS]):
        from tests.trust.fuzz_readers import READERS

        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("reader", choices=READERS)
        options, rest = parser.parse_known_args()
        reader = READERS[options.reader]
        files = dict(reader.valid)
        folder = Path(tempfile.mkdtemp())
        write(files, folder)
        reader.read(folder)  # imports what it needs
    name = next(iter(files))
    corpus = Path(tempfile.mkdtemp())
    (corpus / "valid").write_bytes(files[name])

    def one_input(content: bytes) -> None:
        write(reader.repaired({**files, name: content}), folder)
        outcome, reason = judge(reader.read, folder)
        if outcome == "wrong":
            raise RuntimeError(reason)

    atheris.Setup([sys.argv[0], "-rss_limit_mb=4096", "-timeout=10", *rest, str(corpus)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
