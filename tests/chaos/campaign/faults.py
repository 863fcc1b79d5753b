"""Random faults of a serving run, drawn one after the other from a shuffled deck."""

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from tests.chaos.campaign.attackers import hang_up, send_garbage, send_slowly, stay_idle
from tests.chaos.campaign.server import MODEL, Server, kill

JUMP_SECONDS = 20 * 60
PATTERNS = {
    "replica": "ray::ServeReplica",
    "engine": "answering_engine.py",
    "controller": "serving.serve.controller",
    "writer": "serving.feedback.writer",
    "ray": "raylet/raylet",
    "ray serve": "ray::ServeController",
}


@dataclass
class Faults:
    """Faults of a run so far; times are seconds of the monotonic clock."""

    server: Server
    draw: random.Random
    lasting_seconds: float  # of a full disk, a jump of the clock, ...
    connections: int
    only: frozenset[str] | None = None
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    gateway_kills: list[float] = field(default_factory=list)
    without_room: list[tuple[float, float]] = field(default_factory=list)  # for what is captured
    _deck: list[str] = field(default_factory=list)

    def kinds(self) -> dict[str, Callable[[], Awaitable[str]]]:
        """Return all faults that this machine allows."""
        kinds: dict[str, Callable[[], Awaitable[str]]] = {
            **{f"kill {name}": partial(self._kill, pattern) for name, pattern in PATTERNS.items()},
            "kill gateway": self._kill_gateway,
            **{f"full {disk} disk": partial(self._full, disk) for disk in ("runs", "tmp", "capture")},
            "clock": self._clock,
            "registry": self._registry,
            "slow clients": self._slow,
            "hang-ups": self._hang_up,
            "garbage": self._garbage,
            "idle connections": self._idle,
        }
        skipped = self.server.skipped
        return {name: fault for name, fault in kinds.items() if name not in skipped and (self.only is None or name in self.only)}

    async def burst(self, seconds: float, every: float, *, kills: bool) -> None:
        """Disturb the run for so many seconds, with a fault `every` so many on average; return when all faults are over."""
        deadline, running = time.monotonic() + seconds, dict[str, asyncio.Task[None]]()
        while (left := deadline - time.monotonic()) > 0:
            await asyncio.sleep(min(left, self.draw.expovariate(1 / every)))
            name = self._next(kills=kills)
            if time.monotonic() < deadline and name is not None and (name not in running or running[name].done()):
                running[name] = asyncio.create_task(self._do(name))
        await asyncio.gather(*running.values())

    def _next(self, *, kills: bool) -> str | None:
        kinds = [
            name for name in self.kinds() if kills or not name.startswith(("kill gateway", "kill controller", "kill writer"))
        ]
        self._deck = [name for name in self._deck if name in kinds]
        if not self._deck:
            self._deck = self.draw.sample(kinds, len(kinds))
        return self._deck.pop() if self._deck else None

    async def _do(self, name: str) -> None:
        began = time.monotonic()
        result = await self.kinds()[name]()
        self.counts[name] = self.counts.get(name, 0) + 1
        self.notes.append(f"{began:.1f} {name}: {result}")

    async def _kill(self, pattern: str) -> str:
        processes = await asyncio.to_thread(self.server.processes, pattern)
        victim = self.draw.choice(sorted(processes, key=lambda process: process.pid)) if processes else None
        return f"killed {victim.pid}" if victim is not None and kill(victim) is not None else "there is none"

    async def _kill_gateway(self) -> str:
        gateway = await asyncio.to_thread(self.server.gateway)
        if (moment := kill(gateway)) is None or gateway is None:
            return "none answers"
        self.gateway_kills.append(moment)
        return f"killed {gateway.pid}"

    async def _full(self, disk: str) -> str:
        began = time.monotonic()
        try:
            await asyncio.to_thread(self.server.fill, disk)
            await asyncio.sleep(self.lasting_seconds)
        finally:
            self.server.empty(disk)
            if disk != "tmp":
                self.without_room.append((began, time.monotonic()))
        return f"for {time.monotonic() - began:.1f} s"

    async def _clock(self) -> str:
        jump = self.draw.choice([-JUMP_SECONDS, JUMP_SECONDS])
        try:
            self.server.set_clock(jump)
            await asyncio.sleep(self.lasting_seconds)
        finally:
            self.server.set_clock(0)
        return f"{jump:+d} s"

    async def _registry(self) -> str:
        """Put a damaged entry behind the newest ones of an alias, or in place of a version's entry."""
        folder = self.server.home / "runs/models" / MODEL
        newest = max((folder / "aliases/production").glob("*.json"))
        entry = json.loads(newest.read_text())
        damage = self.draw.choice(["", "{", "[]", "{}", json.dumps(entry)[:-9], json.dumps({**entry, "version": "x"})])
        path = newest.with_name("999998.json")
        if self.draw.random() < 0.5:
            path = max((folder / "versions").glob("*.json"))
            whole, damage = path.read_text(), damage or "{"
        else:
            whole = ""
        try:
            path.write_text(damage)
            await asyncio.sleep(self.lasting_seconds)
        except OSError as error:  # its disk is full
            return str(error)
        finally:
            await self._restore(path, whole)
        return f"{path.parent.name}/{path.name}: {damage!r}"

    async def _restore(self, path: object, whole: str) -> None:
        from pathlib import Path

        assert isinstance(path, Path)
        while whole:
            try:
                temporary = path.with_name("restored.tmp")
                temporary.write_text(whole)
                temporary.rename(path)
            except OSError:
                await asyncio.sleep(0.2)
            else:
                return
        path.unlink(missing_ok=True)

    async def _slow(self) -> str:
        return f"{await send_slowly(self.server.port, 50, self.lasting_seconds)} of 50 closed"

    async def _hang_up(self) -> str:
        return f"{await hang_up(self.server.port, self.server.token, 20, self.draw)} of 20 had begun to answer"

    async def _garbage(self) -> str:
        return f"{await send_garbage(self.server.port, 100, self.draw)} of 100 refused"

    async def _idle(self) -> str:
        count = await stay_idle(self.server.port, self.connections, self.lasting_seconds)
        return f"{count} of {self.connections} opened"
