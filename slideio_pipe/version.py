"""The version of this package: that of the tag that it was built from (``[tool.setuptools_scm]`` in pyproject.toml)."""

try:
    from slideio_pipe._version import __version__ as __version__  # written when the package is built or installed
except ImportError:  # a checkout that was never installed
    __version__ = "0+unknown"
