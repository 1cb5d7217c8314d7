"""Mains of sandboxed children that compose several packages. Nothing imports them; the daemon starts them."""
