from tests.standin.conditions import Condition as CONDRegular

__all__ = ["CONDRegular"]
