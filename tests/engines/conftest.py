"""One bench per module and back end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine_backends import PARAMETERS, open_bench
from engine_programs import EngineBench


@pytest.fixture(scope="module", params=PARAMETERS)
def bench(request: pytest.FixtureRequest) -> Iterator[EngineBench]:
    yield from open_bench(request.param, "ci")
