"""The ledger: the rows by which the processes of one API key keep its limits together."""
