"""Runs the cases with native clients, each against a gateway process of its own: `run.py [WORD...]` those whose name has one of the words.

Run by `tests/run clients`. One line a case; the last line is `N passed, N failed`.
"""

import asyncio
import sys
import time
import traceback

import bus
import chat
import common
import curl
import deflate
import events
import gateway as harness
import polls
import talk

CASE_SECONDS_MAX = 60
CASES = [*chat.CASES, *events.CASES, *curl.CASES, *polls.CASES, *bus.CASES, *talk.CASES, *deflate.CASES]


def main(words):
    print(f"seed {common.SEED}: run again with SHARDCAST_TEST_SEED={common.SEED}", flush=True)
    passed = failed = 0
    for case in CASES:
        name = case.__name__
        if words and not any(word in name for word in words):
            continue
        started = time.monotonic()
        try:
            with harness.Gateway(*getattr(case, "arguments", ()), limits=getattr(case, "limits", None)) as gateway:
                try:
                    asyncio.run(asyncio.wait_for(case(gateway), CASE_SECONDS_MAX))
                except Exception:
                    print(gateway.log[-3000:])
                    raise
        except common.Skip as reason:
            print(f"skip {name}: {reason}", flush=True)
            continue
        except Exception:
            failed += 1
            print(f"FAIL {name}\n{traceback.format_exc()}", flush=True)
            continue
        passed += 1
        print(f"ok   {name} ({time.monotonic() - started:.1f} s)", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
