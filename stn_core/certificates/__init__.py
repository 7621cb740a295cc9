"""Certificates: from bounds on class probabilities to a radius. One file per bound; this is the register."""

from stn_core.certificates import linf, neyman_pearson, neyman_pearson_laplace, pixeldp, renyi, uniform
from stn_core.certificates.certificate import Certificate, Norm

_L2 = (renyi.CERTIFICATE, neyman_pearson.TWO_CLASS, neyman_pearson.ONE_CLASS, pixeldp.GAUSSIAN)

_L1 = (
    renyi.LAPLACE,
    neyman_pearson_laplace.TWO_CLASS,
    neyman_pearson_laplace.ONE_CLASS,
    pixeldp.LAPLACE,
    uniform.TWO_CLASS,
    uniform.ONE_CLASS,
    uniform.SPLITTING,
)

CERTIFICATES: dict[str, Certificate] = {
    certificate.name: certificate for certificate in (*_L2, *_L1, *map(linf.from_l2, _L2))
}


def certificates_for(noise: str) -> tuple[str, ...]:
    """Names of the certificates made for a kind of noise: those in their own norm."""
    return tuple(
        name for name, certificate in CERTIFICATES.items() if certificate.noise == noise and certificate.norm != "linf"
    )


__all__ = ["CERTIFICATES", "Certificate", "Norm", "certificates_for"]
