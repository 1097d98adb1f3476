"""Looks a name up with dnspython."""
import sys

import dns.resolver

kind, name = sys.argv[1:]
for record_type in ("A", "AAAA") if kind == "BOTH" else (kind,):
    try:
        for record in dns.resolver.resolve(name, record_type, search=True):
            print(str(record).rstrip("."))
    except dns.resolver.NXDOMAIN:
        print("NXDOMAIN")
    except dns.resolver.NoAnswer:
        if kind != "BOTH":
            print("NODATA")
