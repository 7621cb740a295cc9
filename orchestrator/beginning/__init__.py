"""`stn init`: a few answers, as a commented spec."""
