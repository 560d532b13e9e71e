"""Where Forge and Neo have them."""

from tests.standin.conditions import Condition, compile_conditions

__all__ = ["Condition", "compile_conditions"]
