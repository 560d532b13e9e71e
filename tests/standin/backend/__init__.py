"""What of Forge the extension imports. The rest of Forge's way is in `tests/standin/forge.py`."""
