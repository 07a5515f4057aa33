"""The contract of :mod:`rstored.backends.abc` as tests that every backend passes, also one from elsewhere.

``pip install 'rstore[service,testing]'`` brings what they need. The page docs/backends.md tells how to use them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

# Before the cases are imported, so that a failed assertion of theirs says what was there instead.
for _module in ("generated", "heads", "life", "listings", "records", "rows", "tools", "updates"):
    pytest.register_assert_rewrite(f"{__name__}.{_module}")

from rstored.backends import backend_class  # noqa: E402
from rstored.backends.abc import Backend  # noqa: E402
from rstored.testing.generated import GeneratedCases  # noqa: E402
from rstored.testing.heads import HeadCases  # noqa: E402
from rstored.testing.life import LifeCases  # noqa: E402
from rstored.testing.listings import ListingCases  # noqa: E402
from rstored.testing.records import RecordCases  # noqa: E402
from rstored.testing.rows import RowCases  # noqa: E402
from rstored.testing.updates import UpdateCases  # noqa: E402

__all__ = ["BackendContract"]


class BackendContract(HeadCases, UpdateCases, RowCases, ListingCases, RecordCases, LifeCases, GeneratedCases):
    """What every backend does. Inherit it in a class whose name begins with ``Test``, and supply two fixtures.

    ``dsn``: the DSN of a store that is not there yet, another one for each test. ``backend_type``: the class, unless
    the DSN's scheme finds it.
    """

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    def backend_type(self, dsn: str) -> type[Backend]:
        return backend_class(dsn)

    @pytest.fixture
    async def backend(self, backend_type: type[Backend], dsn: str) -> AsyncIterator[Backend]:
        backend = await backend_type.open(dsn)
        try:
            yield backend
        finally:
            await backend.close()
