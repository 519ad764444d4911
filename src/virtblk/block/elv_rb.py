"""Requests by sector: the elevator's sort tree (Linux: elv_rb_add, elv_rb_del, elv_rb_find, rb_next).

A treap, where the kernel has a red-black tree: sectors in order from left to right, weights in heap order from the root
down. Weights are hashed from the requests' numbers and sectors, so the tree is as good as randomly built in whatever
order the sectors come. Requests of one sector keep the order in which they came. Under the queue lock.
"""

from __future__ import annotations

from virtblk.block.request import SORT_ROOT
from virtblk.jit.arith import mix64
from virtblk.jit.kernel import cold_kernel, kernel

NONE = -1


@kernel
def replace_child(q, tree, parent, old, new):
    """Hang `new` where `old` hung under `parent` (NONE: the root)."""
    if parent == NONE:
        q.sort[SORT_ROOT + tree] = new
    elif q.rq[parent]["left"] == old:
        q.rq[parent]["left"] = new
    else:
        q.rq[parent]["right"] = new
    if new != NONE:
        q.rq[new]["parent"] = parent


@kernel
def rotate_up(q, tree, node):
    """Lift `node` over its parent; the order from left to right stays."""
    parent = q.rq[node]["parent"]
    replace_child(q, tree, q.rq[parent]["parent"], parent, node)
    if q.rq[parent]["left"] == node:
        moved = q.rq[node]["right"]
        q.rq[node]["right"] = parent
        q.rq[parent]["left"] = moved
    else:
        moved = q.rq[node]["left"]
        q.rq[node]["left"] = parent
        q.rq[parent]["right"] = moved
    if moved != NONE:
        q.rq[moved]["parent"] = parent
    q.rq[parent]["parent"] = node


@cold_kernel
def elv_rb_add(q, tree, rq):
    """Put `rq` into tree 0 (reads) or 1 (writes)."""
    sector = q.rq[rq]["sector"]
    q.rq[rq]["left"] = NONE
    q.rq[rq]["right"] = NONE
    q.rq[rq]["weight"] = mix64(rq ^ (sector << 20))
    parent = NONE
    node = q.sort[SORT_ROOT + tree]
    left = False
    while node != NONE:
        parent = node
        left = sector < q.rq[node]["sector"]
        node = q.rq[node]["left"] if left else q.rq[node]["right"]
    q.rq[rq]["parent"] = parent
    if parent == NONE:
        q.sort[SORT_ROOT + tree] = rq
    elif left:
        q.rq[parent]["left"] = rq
    else:
        q.rq[parent]["right"] = rq
    while q.rq[rq]["parent"] != NONE and q.rq[q.rq[rq]["parent"]]["weight"] < q.rq[rq]["weight"]:
        rotate_up(q, tree, rq)


@cold_kernel
def elv_rb_del(q, tree, rq):
    """Take `rq` out of its tree: sink it until it has one child at most, then close the gap."""
    while q.rq[rq]["left"] != NONE and q.rq[rq]["right"] != NONE:
        left = q.rq[rq]["left"]
        right = q.rq[rq]["right"]
        rotate_up(q, tree, left if q.rq[left]["weight"] > q.rq[right]["weight"] else right)
    child = q.rq[rq]["left"] if q.rq[rq]["left"] != NONE else q.rq[rq]["right"]
    replace_child(q, tree, q.rq[rq]["parent"], rq, child)


@cold_kernel
def elv_rb_find(q, tree, sector):
    """A request of the tree that begins at `sector`, or NONE."""
    node = q.sort[SORT_ROOT + tree]
    while node != NONE and q.rq[node]["sector"] != sector:
        node = q.rq[node]["left"] if sector < q.rq[node]["sector"] else q.rq[node]["right"]
    return node


@cold_kernel
def elv_rb_latter(q, rq):
    """The request behind `rq` in its tree, or NONE (elv_rb_latter_request)."""
    node = q.rq[rq]["right"]
    if node != NONE:
        while q.rq[node]["left"] != NONE:
            node = q.rq[node]["left"]
        return node
    node = rq
    parent = q.rq[node]["parent"]
    while parent != NONE and q.rq[parent]["right"] == node:
        node = parent
        parent = q.rq[node]["parent"]
    return parent


@cold_kernel
def elv_rb_former(q, rq):
    """The request before `rq` in its tree, or NONE (elv_rb_former_request)."""
    node = q.rq[rq]["left"]
    if node != NONE:
        while q.rq[node]["right"] != NONE:
            node = q.rq[node]["right"]
        return node
    node = rq
    parent = q.rq[node]["parent"]
    while parent != NONE and q.rq[parent]["left"] == node:
        node = parent
        parent = q.rq[node]["parent"]
    return parent
