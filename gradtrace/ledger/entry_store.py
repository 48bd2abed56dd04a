"""Writing an entry: everything that its commit names is durable before the commit is put."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gradtrace.ledger.array_format import GROUP, ROOT
from gradtrace.ledger.commit import ArrayDigest, Commit
from gradtrace.ledger.commit_store import write_commit
from gradtrace.ledger.entry import Entry
from gradtrace.ledger.layout_store import StoredLayout
from gradtrace.ledger.paths import entry_prefix, rank_name
from gradtrace.ledger.storage import Storage

__all__ = ["write_entry"]


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
