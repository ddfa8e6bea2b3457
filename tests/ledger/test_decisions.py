"""What people decide: the last word counts, and nobody's part overwrites another's."""

from pathlib import Path

from flashvideo_ray.ledger import decisions
from flashvideo_ray.ledger.decisions import Decision
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.selection.survivors import Opinion


def test_the_last_decision_on_a_preview_counts(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert decisions.opinions(store) == {}
    decisions.write(store, [Decision("a", "approved", "ann"), Decision("b", "rejected", "ann", "blurred")])
    decisions.write(store, [Decision("a", "rejected", "ben")])
    assert decisions.opinions(store) == {"a": Opinion(False, "ben"), "b": Opinion(False, "ann")}
    assert decisions.read(store)["note"].to_pylist() == ["blurred", None]


def test_a_decision_can_be_taken_back(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    decisions.write(store, [Decision("a", "approved", "ann")])
    decisions.write(store, [Decision("a", "cleared", "ann")])
    assert decisions.opinions(store) == {}
    assert decisions.read(store)["status"].to_pylist() == ["cleared"]


def test_no_decisions_no_part(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert decisions.write(store, []) is None
    assert store.keys() == []
