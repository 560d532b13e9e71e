"""Where the host loads its models; the stand-in has them."""
