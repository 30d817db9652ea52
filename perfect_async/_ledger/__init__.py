"""The ledger: what the processes of one API key tell each other, so that they keep one limit."""
