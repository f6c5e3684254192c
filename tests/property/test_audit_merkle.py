from hypothesis import given
from hypothesis import strategies as st

from rayhook.audit.merkle import Frontier, node_hash


def recursive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 2.1, word for word."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(recursive_root(leaves[:split]), recursive_root(leaves[split:]))


@given(leaves=st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=70), data=st.data())
def test_tree_grown_in_steps_is_the_tree_of_all(leaves, data):
    cut = data.draw(st.integers(0, len(leaves)))
    grown = Frontier().grown(leaves[:cut]).grown(leaves[cut:])
    assert grown.root() == recursive_root(leaves)


@given(size=st.integers(0, 300))
def test_frontier_has_one_subtree_per_set_bit(size):
    assert len(Frontier().grown([b"leaf"] * size).subtrees) == size.bit_count()
