"""Rules decide which drafted tokens are kept. One pure function per file."""
