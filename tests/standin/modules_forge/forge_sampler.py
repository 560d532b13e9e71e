from tests.standin.conditions import compile_conditions as cond_from_a1111_to_patched_ldm

__all__ = ["cond_from_a1111_to_patched_ldm"]
