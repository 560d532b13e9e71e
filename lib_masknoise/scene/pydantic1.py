"""Pydantic as the hosts have it: 1 or 2, of which both can do what 1 can."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import v1 as pydantic
else:
    import pydantic

    if not pydantic.VERSION.startswith("1."):
        from pydantic import v1 as pydantic

__all__ = ["pydantic"]
