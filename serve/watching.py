"""Looking whether bundles have been replaced on disk."""

from __future__ import annotations

import asyncio
from pathlib import Path

from mmf_deploy.bundle import MANIFEST

from .service import Service

LONGEST_PAUSE_S = 300.0
"""Between tries of a bundle that cannot be served."""


class Watch:
    """Reloads models whose bundle.json is another file than before.

    Bundles are replaced whole, by a rename, so one file tells.

    Args:
        interval_s: between looks.
    """

    def __init__(self, service: Service, interval_s: float) -> None:
        self._service = service
        self._interval_s = interval_s
        self._seen = self._marks()

    async def run(self) -> None:
        """Look until cancelled."""
        pause_s = self._interval_s
        while True:
            await asyncio.sleep(pause_s)
            marks = await asyncio.to_thread(self._marks)
            # a bundle in the middle of being replaced is not there: look again later
            found = {name: mark for name, mark in marks.items() if mark is not None}
            if all(self._seen.get(name) == mark for name, mark in found.items()):
                continue
            # what failed is tried again, less and less often: it may not have been copied whole
            if await self._service.reload():
                self._seen.update(found)
                pause_s = self._interval_s
            else:
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S + self._interval_s)

    def _marks(self) -> dict[str, tuple[int, int, int] | None]:
        return {
            name: _mark(model.loaded.bundle.path / MANIFEST)
            for name, model in self._service.models.items()
        }


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
