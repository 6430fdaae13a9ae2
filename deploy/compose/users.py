"""Live users for the compose file: `users.py URL COUNT`. Each asks, reads the answer, thinks for a moment, asks again.

Refused (429, at the cap) means: wait a second, as a client should.
"""

import json
import random
import sys
import threading
import time
import urllib.error
import urllib.request

THINK_S = 0.5
BACK_OFF_S = 1.0
PAYLOAD = {"model": "simulated", "max_tokens": 6, "messages": [{"role": "user", "content": "word " * 160}]}


def ask(url: str) -> int:
    """HTTP status; 0 where nobody answered."""
    data, headers = json.dumps(PAYLOAD).encode(), {"content-type": "application/json"}
    request = urllib.request.Request(url, data, headers)  # noqa: S310 - the compose file says where
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - see above
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code
    except OSError:
        return 0


def live(url: str) -> None:
    while True:
        mean_s = THINK_S if ask(url) == 200 else BACK_OFF_S
        time.sleep(random.expovariate(1.0 / mean_s))


if __name__ == "__main__":
    for _ in range(int(sys.argv[2])):
        threading.Thread(target=live, args=(sys.argv[1],)).start()
