"""The attack soak: 100 000 perturbed images inside certified radii, and the answer stays what was certified.

python -m tests.soak.attacks --help
"""
