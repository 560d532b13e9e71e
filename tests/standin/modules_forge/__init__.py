"""What of reForge the extension imports, under its names."""
