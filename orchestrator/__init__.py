"""What runs in the driver: spec, plan, dispatch, reduce, report, and the command line."""
