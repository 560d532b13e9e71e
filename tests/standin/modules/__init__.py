"""A stand-in for the WebUI's own package of this name. Only what the adapter uses, and what calls the adapter."""
