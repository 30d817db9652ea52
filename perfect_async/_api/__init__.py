"""The vendor's JSON: requests as it wants them and answers read with tolerance, without any I/O."""
