"""HTTP of the host: what may be asked, through which proxy, and whose fault a failure is."""
