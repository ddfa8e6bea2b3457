"""What `ray job submit` runs: the whole pipeline, or stage 1 only, on the cluster the job was submitted to.

ray job submit --working-dir . -- python jobs/render.py --prompts s3://bucket/prompts.parquet --output s3://bucket/run1
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# `--working-dir .` brings the checkout to the cluster; where the package is installed on the nodes, that one is used.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from flashvideo_ray.cli import run_job
from flashvideo_ray.graph.quota import Quota
from flashvideo_ray.settings import Settings


def main() -> int:
    """Read the arguments and run the job; the exit status is that of flashvideo_ray.cli."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--prompts", required=True, help="Parquet (or .jsonl, .csv): file, folder or glob, any fsspec URL"
    )
    parser.add_argument("--output", required=True, help="where the run goes: any fsspec URL")
    parser.add_argument("--config", default=None, help="a preset (nano, flashvideo-1080p) or a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="one setting")
    parser.add_argument("--until", choices=["preview", "refine"], default="refine", help="stop after this stage")
    parser.add_argument("--retry", metavar="failed[:CLASS]", help="take up candidates that failed before")
    parser.add_argument("--takeover", action="store_true", help="take the run from a job that still holds it")
    parser.add_argument("--relabel", action="store_true", help="give the run's candidates the ids and columns of now")
    parser.add_argument("--accept", type=int, metavar="N", help="end when the run has so many rendered clips")
    parser.add_argument("--budget", metavar="'N gpu-hours'", help="end when this job's pools held cards for so long")
    args = parser.parse_args()

    from flashvideo_ray.graph import pipeline

    return run_job(
        lambda: pipeline.render(
            args.prompts,
            args.output,
            Settings.load(args.config, args.overrides),
            until=args.until,
            retry=args.retry,
            takeover=args.takeover,
            relabel=args.relabel,
            quota=Quota.parse(args.accept, args.budget),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
