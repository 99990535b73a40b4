"""What comes with the package: a trained checkpoint and the images it is evaluated on."""

from pathlib import Path

FOLDER = Path(__file__).parent
CHECKPOINT = FOLDER / "fashion-mnist.safetensors"
"""The embedded default, native format; its training record is inside."""
