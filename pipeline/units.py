"""Figures as people read them."""

from __future__ import annotations


def size(n_bytes: float) -> str:
    """Write a size for people, in decimal units as file managers and registries do: 1.65 MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 1000 or unit == "TB":
            break
        n_bytes /= 1000
    return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.2f} {unit}"
