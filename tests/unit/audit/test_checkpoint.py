from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rayhook.audit.checkpoint import Anchor, Checkpoint, SealedTree, TreeHead, latest_tree, stored_trees
from rayhook.audit.merkle import Frontier, leaf_hash

KEY = Ed25519PrivateKey.generate()
FRONTIER = Frontier().grown([leaf_hash(b"1"), leaf_hash(b"2"), leaf_hash(b"3")])
TREE_HEAD = TreeHead(
    size=3, root=FRONTIER.root().hex(), head="ab" * 32, signed_at="2026-01-01T00:00:00.000000Z"
)


def signed(tree_head: TreeHead) -> Checkpoint:
    return Checkpoint(tree_head, KEY.sign(tree_head.statement()).hex())


def test_own_signature_holds():
    assert signed(TREE_HEAD).is_signed_by(KEY.public_key())


@pytest.mark.parametrize(
    "change",
    [{"size": 4}, {"root": "00" * 32}, {"head": "00" * 32}, {"signed_at": "2026-01-02"}, {"size": "3"}],
)
def test_signature_covers_every_field(change):
    forged = replace(signed(TREE_HEAD), tree_head=replace(TREE_HEAD, **change))
    assert not forged.is_signed_by(KEY.public_key())


@pytest.mark.parametrize("signature", ["", "zz", "00" * 64, None, 5])
def test_what_is_no_signature_does_not_hold(signature):
    assert not Checkpoint(TREE_HEAD, signature).is_signed_by(KEY.public_key())


def test_statement_is_canonical_json():
    assert TREE_HEAD.statement() == (
        b'{"context":"rayhook-audit-checkpoint-v1","head":"'
        + b"ab" * 32
        + b'","root":"'
        + TREE_HEAD.root.encode()
        + b'","signed_at":"2026-01-01T00:00:00.000000Z","size":3}'
    )


def test_tree_reads_back(database):
    tree = SealedTree(signed(TREE_HEAD), FRONTIER)
    with database.sessions() as session:
        tree.store(session)
        assert latest_tree(session) == tree
        assert stored_trees(session) == [tree]


def test_empty_database_has_no_tree(database):
    with database.reading() as session:
        assert latest_tree(session) is None


@pytest.mark.parametrize("frontier", [Frontier(), Frontier(3, (b"x" * 32,)), Frontier(2, FRONTIER.subtrees)])
def test_tree_with_another_right_edge_is_not_sound(frontier):
    assert not SealedTree(signed(TREE_HEAD), frontier).is_sound(KEY.public_key())


def test_anchor_reads_back_in_order(anchor):
    later = signed(replace(TREE_HEAD, size=4))
    for checkpoint in (signed(TREE_HEAD), later):
        Anchor(anchor).append(checkpoint)
    assert list(Anchor(anchor).checkpoints()) == [signed(TREE_HEAD), later]


def test_anchor_is_private(anchor):
    Anchor(anchor).append(signed(TREE_HEAD))
    assert anchor.stat().st_mode & 0o777 == 0o600


def test_anchor_does_not_repeat_its_last_line(anchor):
    for _ in range(2):
        Anchor(anchor).append(signed(TREE_HEAD))
    assert len(list(Anchor(anchor).checkpoints())) == 1


def test_anchor_drops_a_line_that_a_power_cut_left_unfinished(anchor):
    Anchor(anchor).append(signed(TREE_HEAD))
    with anchor.open("ab") as file:
        file.write(b'{"size": 4, "ro')
    later = signed(replace(TREE_HEAD, size=5))
    Anchor(anchor).append(later)
    assert list(Anchor(anchor).checkpoints()) == [signed(TREE_HEAD), later]


def test_anchor_longer_than_what_is_looked_at_keeps_all_lines(anchor):
    checkpoints = [signed(replace(TREE_HEAD, size=size)) for size in range(30)]
    for checkpoint in checkpoints:
        Anchor(anchor).append(checkpoint)
    assert list(Anchor(anchor).checkpoints()) == checkpoints


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b"null", b"\xff", b'{"signature": "00", "other": 1}'])
def test_line_that_says_nothing_is_none(anchor, line):
    anchor.write_bytes(line + b"\n")
    assert list(Anchor(anchor).checkpoints()) == [None]


def test_absent_anchor_is_told(anchor):
    with pytest.raises(FileNotFoundError):
        list(Anchor(anchor).checkpoints())


def test_last_line_of_a_long_anchor_is_read_alone(anchor):
    checkpoints = [signed(replace(TREE_HEAD, size=size)) for size in range(30)]
    for checkpoint in checkpoints:
        Anchor(anchor).append(checkpoint)
    with anchor.open("ab") as file:
        file.write(b'{"size": 31, "ro')
    assert Anchor(anchor).last() == checkpoints[-1]


@pytest.mark.parametrize("content", [b"", b'{"size": 4, "ro'])
def test_anchor_without_a_whole_line_has_no_last(anchor, content):
    anchor.write_bytes(content)
    assert Anchor(anchor).last() is None
