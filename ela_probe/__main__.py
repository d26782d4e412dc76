"""`python -m ela_probe` runs the command line."""

# Installed from the folder cli/, which a type checker does not know by this name.
from ela_probe_cli import run  # type: ignore[import-not-found]

if __name__ == "__main__":
    run()
