"""``python -m ingestor``: the recorder without the pipeline."""

from ingestor.cli import cli

if __name__ == "__main__":
    cli(prog_name="python -m ingestor")
