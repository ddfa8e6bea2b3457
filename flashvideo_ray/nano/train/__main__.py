"""Command line of the training: `python -m flashvideo_ray.nano.train all|vae|text|stage1|stage2|clip|export`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch


def main() -> None:
    """Train one part, or all of them in order and export the model into the package."""
    parser = argparse.ArgumentParser(prog="flashvideo_ray.nano.train", description=__doc__)
    parser.add_argument("part", choices=["all", "vae", "text", "stage1", "stage2", "clip", "export"])
    parser.add_argument("--work", type=Path, default=Path("build/nano"), help="checkpoints, caches and curves")
    parser.add_argument("--dest", type=Path, default=None, help="where to export; default is the package")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, at a toy size")
    parser.add_argument("--threads", type=int, default=1, help="two processes of one thread beat one of two")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    from .recipe import run_part, run_smoke

    if arguments.smoke:
        run_smoke(arguments.work, arguments.dest)
    else:
        run_part(arguments.part, arguments.work, arguments.dest)


if __name__ == "__main__":
    main()
