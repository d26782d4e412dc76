"""Trust: what hostile files and faults do to the program (`make trust`)."""
