"""Certificates from another program's log."""
