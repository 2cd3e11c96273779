"""Judges of recorded histories: what clients asked and were told, against what etcd promises.

Each checker takes plain records and raises `Violation`, which names the checker and tells the
operations concerned. The simulator and the tests with real processes use the same ones.
"""
