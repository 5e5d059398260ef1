"""The formats clients speak: a thin translation in and out of each, and nothing else.

A further dialect is one file here and a route in routes.py. dialect.py says what one must do.
"""
