"""Recipe + Target -> Plan: filtered, expanded, with versions, URLs, dependencies; its script."""
