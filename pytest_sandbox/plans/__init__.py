"""Recipe + Target -> Plan: filtered, expanded, with versions, URLs and dependencies; and its script."""
