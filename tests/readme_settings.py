"""The README's settings table, generated from the settings class: `make readme` writes it, a test compares it."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import SecretStr

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from bento_service.settings import Settings  # noqa: E402  the path must be set first

README = REPOSITORY / "README.md"
BEGIN, END = "<!-- settings: written by `make readme` -->", "<!-- end of settings -->"


def shown(value: object) -> str:
    """Spell a default as one would set it."""
    if value is None:
        return "automatic"
    if isinstance(value, SecretStr):  # a default is no secret
        value = value.get_secret_value()
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def table() -> str:
    """Render one row for each setting."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    rows += [
        f"| `{field.validation_alias}` | {shown(field.default)} | {field.description} |"
        for field in Settings.model_fields.values()
    ]
    return "\n".join(rows)


def written() -> str:
    """Return the table that stands in the README."""
    return README.read_text().partition(BEGIN)[2].partition(END)[0].strip()


if __name__ == "__main__" and "--write" in sys.argv:
    head, _, rest = README.read_text().partition(BEGIN)
    README.write_text(f"{head}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}")
