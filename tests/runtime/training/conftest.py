"""torch takes seconds to import: its tests are not even collected where slow ones are not wanted."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if "not slow" in config.option.markexpr and collection_path.suffix == ".py" else None
