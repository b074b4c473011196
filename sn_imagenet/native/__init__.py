"""Compile C++ for this CPU: once per machine, into a private cache, and loaded safely."""

from sn_imagenet.native.compiler import cache_directory, load_library

__all__ = ["cache_directory", "load_library"]
