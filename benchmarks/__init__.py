"""Ratios, each measured in one run: `make bench` prints them, `make bench-check` compares
them with the recorded ones.
"""
