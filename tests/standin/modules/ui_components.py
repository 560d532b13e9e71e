class InputAccordion:
    """The accordion that can be switched on. The stand-in has no user interface."""
