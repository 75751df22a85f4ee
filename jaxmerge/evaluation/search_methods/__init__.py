"""Search methods, one a module; each registers its record."""
