# SPDX-License-Identifier: Apache-2.0
"""Others who use resctrl on the same node. Each goes through a tree, so that on a mounted one the kernel's events come as they would."""

from __future__ import annotations

from collections.abc import Collection

from deviceplugin.testing.resctrl.tree import Tree, Values, groups, read_text, schemata, set_values


def wipe(tree: Tree, keep: Collection[str] = ()) -> list[str]:
    """Removes every group but those in ``keep``, tasks or not, and says which.

    That is what goresctrl's ``SetConfig(force=true)`` does: containerd and CRI-O with ``rdt_config_file`` at each start, NRI plugins at each change.
    """
    gone = [name for name in groups(tree) if name not in keep]
    for name in gone:
        tree.rmdir(name)
    return gone


def widen(tree: Tree, group: str = "") -> None:
    """Gives a group, the root group unless named, every way of every cache. Raises OSError where another has some exclusively."""
    for name, values in schemata(tree, group).items():
        if name.startswith("L3"):
            every = int(read_text(tree, f"info/{name}/cbm_mask"), 16)
            set_values(tree, group, name, dict.fromkeys(values, every))


def take(tree: Tree, name: str, ways: Values, *, resource: str = "L3", mode: str = "shareable") -> None:
    """Makes a group with these ways by cache. ``exclusive`` fails unless no other, the root group included, has any of it. Raises OSError."""
    tree.mkdir(name)
    set_values(tree, name, resource, ways)
    tree.write(f"{name}/mode", f"{mode}\n".encode())
