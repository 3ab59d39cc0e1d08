"""Which of two versions of a projection is live: switched in one transaction, and nothing of what they emit is lost."""

from dataclasses import replace

from ecotone_fastapi.modelling.projecting import Projector
from ecotone_fastapi.modelling.projection_store import Condition, ProjectionRecord


async def would_lose(projector: Projector, live: ProjectionRecord, built: ProjectionRecord) -> bool:
    """Whether a built version has handled events, silently, of which the live one has emitted nothing yet."""
    if not projector.methods.emits or projector.synchronous:
        return False
    if projector.described.partitioned:
        return False  # it is asked of every partition
    if built.position <= live.position:
        return False
    page = await projector.read(live.position, 1)
    return any(event.position is not None and event.position <= built.position for event in page.events)


async def _owes(projector: Projector, live: ProjectionRecord) -> bool:
    """Whether a live synchronous version has not handled, and so not emitted, what was left to its revision."""
    if not (projector.methods.emits and projector.synchronous):
        return False
    return (await projector.store.count(live.name, live.version, live.round)).behind > 0


async def _silence_partitions(projector: Projector, live: ProjectionRecord, built: ProjectionRecord) -> bool:
    """Let built partitions emit from where the live ones have stopped; return `False` when one of those is behind."""
    if not projector.methods.emits:
        return True
    store, after, shared = projector.store, "", 0
    while found := await store.partitions(live.name, built.version, after=after, limit=500):
        after = found[-1].stream
        kept = []
        for one in found:
            known = await store.partition(live.name, live.version, one.stream)
            shared += known is not None
            emitted = 0 if known is None else known.position
            if emitted < one.position:
                return False
            kept.append(replace(one, silent_until=emitted))
        await store.keep(live.name, built.version, kept)
    if shared < (await store.count(live.name, live.version, live.round)).total:
        await _silence_new_partitions(projector, live, built)
    return True


async def _silence_new_partitions(projector: Projector, live: ProjectionRecord, built: ProjectionRecord) -> None:
    """Begin the partitions that only the live version knows: of them, too, it has emitted what it has handled."""
    store, after = projector.store, ""
    while found := await store.partitions(live.name, live.version, after=after, limit=500):
        after = found[-1].stream
        for one in found:
            if one.position and await store.partition(live.name, built.version, one.stream) is None:
                begun = replace(await store.hold(built, one.stream), wanted=one.wanted, silent_until=one.position)
                await store.keep(live.name, built.version, [begun])


async def switch(
    projector: Projector, versions: dict[int, ProjectionRecord], built: ProjectionRecord
) -> ProjectionRecord | None:
    """Make a built version the live one; within a unit of work that has locked all versions.

    Returns:
        The version, live; `None` when the live one is to come further first, so that nothing of what they emit is lost.
    """
    live = next((one for one in versions.values() if one.condition is Condition.LIVE), None)
    silent_until = built.silent_until
    if live is not None:
        if await would_lose(projector, live, built) or await _owes(projector, live):
            return None
        if projector.described.partitioned and not await _silence_partitions(projector, live, built):
            return None
        silent_until = live.position
        await projector.store.change(replace(live, condition=Condition.RETIRED))
    after = replace(built, condition=Condition.LIVE, by_hand=False, silent_until=silent_until, halt=None)
    await projector.store.change(after)
    return after
