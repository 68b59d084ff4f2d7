"""The engine as PYNQ sees it: a driver bound by its identity in the ``.hwh`` file. Needs pynq."""

from __future__ import annotations

from typing import Any

from pynq import DefaultIP

from host.overlay import ENGINE_VLNV, INTERRUPT_PIN


class EngineIP(DefaultIP):
    """Either implementation of the engine; PYNQ makes one when ``overlay.engine`` is first asked for.

    It only reads and writes registers and knows its interrupt. Everything else is the driver's
    (:class:`host.driver.Driver`), which is the same on every back end.
    """

    bindto = list(ENGINE_VLNV.values())

    @property
    def line(self) -> Any:
        """The interrupt (``pynq.Interrupt``), or None where none is wired."""
        return getattr(self, INTERRUPT_PIN, None)
