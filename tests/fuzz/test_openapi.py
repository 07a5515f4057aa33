"""Schemathesis over ``openapi.json`` against a service process: no 5xx, and no answer that the document does not have.

``RSTORE_FUZZ_EXAMPLES`` is how many requests are made for each operation in each phase, ``RSTORE_FUZZ_SEED`` where
they begin; `make fuzz` sets the first to many.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from tests.knobs import knob

ROOT = Path(__file__).parents[2]
EXAMPLES = int(knob("RSTORE_FUZZ_EXAMPLES", "1"))
SEED = knob("RSTORE_FUZZ_SEED", "1")


@pytest.mark.parametrize("phases", ["examples,coverage,fuzzing", "stateful"])
def test_the_service_is_as_the_document_says(serve, tmp_path, phases):
    # The store is closed, so that what no token may do is asked for as well.
    token = secrets.token_hex(16)
    service = serve(
        f"sqlite:///{tmp_path / 'store.db'}",
        env={"RSTORED_ADMIN_TOKEN": token},
        limits={"FAILED_AUTHENTICATIONS_PER_MINUTE_MAX": 1_000_000},
    )
    command = ["schemathesis", "--config-file", str(ROOT / "tests" / "fuzz" / "schemathesis.toml")]
    command += ["run", str(ROOT / "openapi" / "openapi.json"), "--url", service.url, "--phases", phases]
    command += [
        "--header",
        f"Authorization: Bearer {token}",
        "--seed",
        SEED,
        "--max-examples",
        str(EXAMPLES),
        "--no-color",
    ]
    done = subprocess.run(
        [Path(sys.executable).with_name(command[0]), *command[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60 + 60 * EXAMPLES,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    assert service.process.poll() is None
    assert "Traceback" not in service.log
