"""What there is in a store, by name and size: two columns, whatever the names are."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa

from flashvideo_ray.ledger.objects import Objects
from flashvideo_ray.ledger.store import Store


def test_all_objects_of_folders_have_their_sizes_wherever_they_lie_in_them(store: Store) -> None:
    keys = ["clips/stray.mp4", "clips/ab/one.mp4", "clips/ab/cd/two.mp4", "clips/ef/.hidden", "latents/ab/one"]
    for size, key in enumerate([*keys, "ledger/other"]):
        store.put(key, bytes(size))
    there = Objects(store, ("clips", "latents", "previews"))
    assert len(there) == len(keys)
    asked = pa.chunked_array([[*keys, None], ["ledger/other", "clips/ab"]], pa.string())
    assert there.sizes(asked).to_pylist() == [0, 1, 2, 3, 4, None, None, None]
    named = [pa.chunked_array([keys[:2], [None]], pa.string()), pa.chunked_array([keys[3:]])]
    assert [*there.without(named)] == [("clips/ab/cd/two.mp4", 2)]
    assert len(Objects(store, ())) == 0


def test_a_file_whose_name_is_no_text_is_an_object_like_others(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put("clips/ab/one.mp4", b"")
    with open(os.fsencode(tmp_path / "clips") + b"/\xff.mp4", "wb"):
        pass
    [(key, size)] = Objects(store, ("clips",)).without([pa.chunked_array([["clips/ab/one.mp4"]])])
    assert (os.fsencode(key), size) == (b"clips/\xff.mp4", 0)
