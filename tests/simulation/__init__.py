"""Whole clusters in one process, on a fake network, disk and clock, all from one seed.

`python -m simulation` (with tests/ on the path) or `./run simulate` runs seeds.
"""
