"""Lets `python -m checkpoint_cli` run the bucket door."""

from checkpoint_cli.app import bucket

if __name__ == "__main__":
    bucket()
