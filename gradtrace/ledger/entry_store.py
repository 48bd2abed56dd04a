"""Writing an entry: everything that its commit names is durable before the commit is put."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gradtrace.ledger.array_format import GROUP, ROOT
from gradtrace.ledger.commit import ArrayDigest, Commit
from gradtrace.ledger.commit_store import write_commit
from gradtrace.ledger.entry import Entry
from gradtrace.ledger.layout_store import StoredLayout
from gradtrace.ledger.paths import entry_prefix, rank_name
from gradtrace.ledger.storage import Storage

__all__ = ["commit_parts", "write_entry"]


def write_entry(
    storage: Storage,
    run: str,
    entry: Entry,
    layout: StoredLayout,
    accumulators: Mapping[str, str],
    write: Callable[[str, int, str], ArrayDigest],
) -> Commit:
    """Write the entry and return its commit, durable.

    Args:
        storage: where the ledger lies.
        run: its run id.
        entry: what is written.
        layout: the layout that it names.
        accumulators: those of the ledger.
        write: called with (key, rank, accumulator) for each array; puts it there and returns its checksums.
    """
    prefix = entry_prefix(entry.begin, entry.end, entry.generation)
    storage.write(f"{prefix}/{ROOT}", GROUP)
    digests: dict[str, ArrayDigest] = {}
    for rank in range(len(layout.layout.ranks)):
        storage.write(f"{prefix}/{rank_name(rank)}/{ROOT}", GROUP)
        for accumulator in accumulators:
            name = f"{rank_name(rank)}/{accumulator}"
            digests[name] = write(f"{prefix}/{name}", rank, accumulator)
    storage.sync(prefix)
    commit = Commit(entry, layout.digest, digests)
    write_commit(storage, run, commit)
    return commit


def commit_parts(
    storage: Storage, run: str, entry: Entry, layout: StoredLayout, parts: Sequence[Mapping[str, ArrayDigest]]
) -> Commit:
    """Commit an entry whose arrays each rank has made durable already, and return its commit, durable."""
    # Put, not written: a sync of the entry would open every file of every rank once more.
    storage.put(f"{entry_prefix(entry.begin, entry.end, entry.generation)}/{ROOT}", GROUP)
    digests = {
        f"{rank_name(rank)}/{name}": digest
        for rank, part in enumerate(parts)
        for name, digest in part.items()
    }
    commit = Commit(entry, layout.digest, digests)
    write_commit(storage, run, commit)
    return commit
