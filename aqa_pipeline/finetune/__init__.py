"""Backbone and head trained together."""
