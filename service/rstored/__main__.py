"""The entry of the command ``rstored`` and of ``python -m rstored``."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command, or say in one line which package is missing: the SDK alone is installed without them."""
    try:
        from rstored.main import main as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "rstored":
            raise
        raise SystemExit(
            f"rstored: the package {error.name} is missing; install rstore with its extra: rstore[service]"
        ) from None
    run()


if __name__ == "__main__":
    main()
