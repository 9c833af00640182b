"""``schedopt calibrate``: the constants of the bound, measured on real data and models along pilot runs, into a problem file."""
