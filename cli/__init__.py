"""The command line: one thin command per file over the libraries, with heavy imports only where they are used."""
