"""`python -m ela_probe` runs the command line."""

from ela_probe_cli import run

if __name__ == "__main__":
    run()
