"""The contract of :mod:`rstored.backends.abc` as tests. Every backend passes them, even one from another package.

The extras ``rstore[service,testing]`` bring what they need. The page docs/backends.md says how to use them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

# This precedes the import of the cases, so that their failed assertions show what was found.
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

    ``dsn`` is the DSN of a store that does not exist yet, a different one for each test. ``backend_type`` is the class
    of the backend. It is needed only if the scheme of the DSN does not find the class.
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
