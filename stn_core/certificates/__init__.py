"""Certificates: from bounds on class probabilities to a radius. One file per bound; this is the register."""

from stn_core.certificates import neyman_pearson, renyi
from stn_core.certificates.certificate import Certificate

CERTIFICATES: dict[str, Certificate] = {
    certificate.name: certificate
    for certificate in (
        renyi.CERTIFICATE,
        neyman_pearson.ONE_CLASS,
        neyman_pearson.TWO_CLASS,
    )
}

__all__ = ["CERTIFICATES", "Certificate"]
