"""Adapters that put the recorder into training frameworks."""
