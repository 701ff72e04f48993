"""A study in the formats of other tools. Each is read back by the receiving library in the tests."""

from vmaptune.view.export._export import FORMATS, export

__all__ = ["FORMATS", "export"]
