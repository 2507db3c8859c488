"""The commands of ``python -m ikdlib``, a file for each group; ``add`` in each says what it takes."""
