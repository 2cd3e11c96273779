"""The engine of the fleet beside real stores, without machines that run units."""

import asyncio
import gc
from pathlib import Path

from aio import eventually, run
from trimaran.client import Client
from trimaran.daemons.fleet_engine import Engine
from trimaran.daemons.fleet_presence import Presence
from trimaran.fleet.loss import LossJudge
from trimaran.fleet.records import LEADER_KEY, MachineRecord


def test_losing_the_seat_ends_a_term_without_errors_that_nobody_takes(
    store_endpoint: str, tmp_path: Path
) -> None:
    def follows() -> bool:
        return any(task.get_name() == "fleet mirror" for task in asyncio.all_tasks())

    async def main() -> None:
        async with Client([store_endpoint]) as client:
            presence = Presence(client, "m1", MachineRecord("10.0.0.1", {}, ""), 10, tmp_path)
            engine = Engine(client, "m1", presence, LossJudge())
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(part) for part in (presence.run(), engine.run())]
                await eventually(lambda: engine.is_leader and follows())
                revision = (await client.delete(LEADER_KEY)).revision
                # The one engine there is takes the seat again.
                await eventually(lambda: engine._token > revision and follows())
                for task in tasks:
                    task.cancel()
        # An error that was never taken is reported when its task is collected.
        gc.collect()

    run(main())
