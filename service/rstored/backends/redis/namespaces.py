"""How an update changes namespaces of a cluster: in steps.

Other processes decide by the record of the namespace in the registry, which is written last when it is created and
first when it is deleted. After a crash, :meth:`RedisBackend.purge` completes these steps.
"""

from __future__ import annotations

from rstored.backends.redis.calls import Call
from rstored.backends.redis.commits import packed_update
from rstored.backends.redis.sections import NamespaceChanges
from rstored.backends.redis.store import Store


async def change_namespaces(store: Store, changes: NamespaceChanges) -> int | bytes:
    """Carry out the changes. Returns the status of the update in the registry, 1 if they took place.

    Raises the problem of a step that fails.
    """
    registry = store.registry
    try:
        if changes.made:
            now = store.clock() // 1000
            pending = [
                Call(registry.slot, None, ("ZADD", registry.tag + b":pending", now, owner.id)) for owner in changes.made
            ]
            await store.exchange(pending)
            await store.exchange(
                store.commit_call(bucket, [packed_update((), (), writes)]) for bucket, writes in changes.before
            )
            for owner in changes.made:
                changes.registry += ("Z", registry.tag + b":pending", owner.id)
        for name in changes.changed:
            changes.registry += ("a", registry.tag + b":unsettled", name)
        update = packed_update(changes.checks.items(), (), changes.registry)
        status: int | bytes
        ((status,),) = await store.exchange([store.commit_call(registry, [update])])
        if status == 1:
            await store.exchange(
                store.commit_call(bucket, [packed_update((), (), writes)]) for bucket, writes in changes.after
            )
            for name in changes.changed:
                await store.settle(name)
    finally:
        for name in changes.changed:
            store.forget(name)
    if status == 1:
        for owner in changes.made:
            store.know(owner)
    return status
