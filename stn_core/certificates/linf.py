"""L-infinity radii from L2 ones: ||delta||_2 <= sqrt(d) ||delta||_inf for d values in an image, and nothing more.

In many dimensions such radii are tiny. They are no certificates made for L-infinity, only L2 ones read in another norm.
"""

from __future__ import annotations

import dataclasses

from stn_core.certificates.certificate import Certificate


def from_l2(certificate: Certificate) -> Certificate:
    """The certificate ``NAME_linf``, radius / sqrt(d)."""
    return dataclasses.replace(
        certificate,
        name=f"{certificate.name}_linf",
        norm="linf",
        source=f"{certificate.source}; divided by sqrt(d)",
        dimension_power=0.5,
    )
