"""Formats of files: how an image of each is read, and how masks and maps are written, one format a module."""
