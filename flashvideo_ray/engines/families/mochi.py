"""Mochi 1."""

from flashvideo_ray.engines.families import Family

FAMILY = Family(fps=30)
