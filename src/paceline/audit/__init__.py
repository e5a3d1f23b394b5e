"""Re-checking exactness: an engine against its own target, or a server against what it states itself."""
