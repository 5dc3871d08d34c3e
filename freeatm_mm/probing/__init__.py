"""How good frozen features and recorded masks are, in figures."""
