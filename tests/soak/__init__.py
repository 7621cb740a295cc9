"""The soak: runs that are killed at random, on storage that misbehaves at random, end as an undisturbed one.

python -m tests.soak --help
"""
