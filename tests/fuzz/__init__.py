"""Broken and hostile files for every reader of foreign bytes: `.ci/fuzz` runs it, tests/test_fuzz.py what it found."""
