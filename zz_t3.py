import sys, time, tempfile
from pathlib import Path
from tests.chaos import rounds
from tests.chaos.rounds import *
if __name__=="__main__":
    seed=int(sys.argv[1])
    d=Path(tempfile.mkdtemp(prefix="chaos")); print(d)
    c=Chaos(d, seed)
    for call in sys.argv[2:]:
        t=time.time()
        try:
            a=eval(call)
            print(call, "in", round(time.time()-t,1), a.acknowledged,a.states,a.failed,a.delivered,a.repeated_sends,a.forgotten,a.orphans); print(len(a.violations)); print("\n".join(a.violations[:12]), flush=True)
        except Exception as e:
            import traceback; traceback.print_exc()
            print(call, "FAILED in", time.time()-t, flush=True)
    print(c.tally.kills.done); print(c.tally.faults)
    for k,v in sorted(c.tally.kills.counted.items()): print(v,k)
