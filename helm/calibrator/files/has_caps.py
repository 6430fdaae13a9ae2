"""`helm test`: is the service ready, and does every backend have a cap of at least 1? (/metrics needs no token.)"""

import re
import ssl
import sys
import urllib.request

service, *backends = sys.argv[1:]
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the name of the Service need not be in it
for path in ("/readyz", "/metrics"):
    with urllib.request.urlopen(service + path, timeout=10, context=context) as answer:
        page = answer.read().decode()
caps = dict(re.findall(r'^calibrator_recommended_concurrency{backend="(.+)"} (.+)$', page, re.MULTILINE))
for backend in backends:
    print(f"{backend}: cap {caps.get(backend, 'missing')}")
sys.exit(not all(float(caps.get(backend, 0)) >= 1 for backend in backends))
