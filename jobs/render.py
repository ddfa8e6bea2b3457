"""What `ray job submit` runs: `flashvideo-ray render` on the cluster the job was submitted to.

ray job submit --working-dir . -- python jobs/render.py --prompts s3://bucket/prompts.parquet --output s3://bucket/run1
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# `--working-dir .` brings the checkout to the cluster; where the package is installed on the nodes, that one is used.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from flashvideo_ray.cli import app


def main() -> None:
    """Name prompts and output as options, and leave all others to the command; the exit status is its own."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="All other options are those of `flashvideo-ray render`, which its --help tells.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--prompts", required=True, help="a file, folder or glob, any fsspec URL")
    parser.add_argument("--output", required=True, help="where the run goes: any fsspec URL")
    args, others = parser.parse_known_args()
    app(["render", *others, "--", args.prompts, args.output])


if __name__ == "__main__":
    main()
