"""Wan 2.1 and 2.2."""

from flashvideo_ray.engines.families import Family

FAMILY = Family(fps=16, needs={"WanVideoToVideoPipeline": "ftfy"})
