"""What a video says of itself: that a machine made it, with what, and, unless it is to be kept back, from which prompt.

The keys of the MP4 and the signed manifest (`credentials`) are the same. A file without a manifest still has the plain
mark: IPTC's digital source type, as a key of its container and in an XMP packet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from flashvideo_ray.settings import Metadata, Settings, Stage
from flashvideo_ray.versions import version_of

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
   <Iptc4xmpExt:DigitalSourceType>{DIGITAL_SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""
"""The mark as IPTC defines it for video, where readers of photo and video metadata look for it."""

PRIVATE = ("id", "prompt", "negative_prompt", "seed", "candidate")
"""Keys that `video.metadata: minimal` keeps back."""
_SOFTWARE = ("flashvideo-ray", "torch", "diffusers", "av")  # what pixels and the encoder come from
_PLACES = {"software", "models"}  # may differ from job to job, and the clip is the same
_STAGES: tuple[Stage, ...] = ("preview", "refine")


def of_run(recipe: Mapping[str, Any], settings: Settings) -> dict[str, str]:
    """The keys that all videos of a run have: settings and weights that made them. Folders stand without their path."""
    models = {
        stage: {
            "model": _name(getattr(settings, stage).model),
            "adapters": [
                {"path": os.path.basename(each.path), "weight": each.weight}
                for each in getattr(settings, stage).adapters
            ],
        }
        for stage in _STAGES
    }
    return {
        "comment": "made by flashvideo-ray",
        "digital_source_type": DIGITAL_SOURCE_TYPE,
        "software": ", ".join(f"{name} {version_of(name)}" for name in _SOFTWARE),
        "models": json.dumps(models),
        "settings": json.dumps({name: recipe[name] for name in ("text", *_STAGES, "video")}),
        "model_fingerprints": json.dumps(recipe["fingerprints"]),
    }


def of_candidate(row: Mapping[str, Any], metadata: Metadata = "full") -> dict[str, str]:
    """The keys of one candidate; of `minimal` ones the `clip_id` alone."""
    names = ("clip_id", *PRIVATE) if metadata == "full" else ("clip_id",)
    own = {name: row.get(name) for name in names}
    return {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in own.items() if value is not None
    }


def says_the_same(there: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether the keys of a file that is there are those that it would get now, and it tells no more of its prompt.

    Versions and names of model folders may differ: they decide no pixel that settings and fingerprints do not.
    """
    kept_back = {*PRIVATE} & {*there} - {*now}
    return not kept_back and all(there.get(name) == value for name, value in now.items() if name not in _PLACES)


def _name(model: str) -> str:
    return os.path.basename(os.path.abspath(model)) if os.path.isdir(model) else model
