"""Compile C++ for this CPU: once per machine, into a private cache, and loaded safely."""

from sn_imagenet.native.compiler import cache_directory, compiler_version, load_library
