"""CogVideoX 2B and 5B. CogVideoX 1.5 draws 16 frames a second: `video.fps: 16`."""

from flashvideo_ray.engines.families import Family

FAMILY = Family(fps=8)
