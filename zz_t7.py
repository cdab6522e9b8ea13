import time, tempfile, sys
from pathlib import Path
from tests.chaos import crew
from tests.chaos.rounds import *
T=time.time()
ob,oc=crew.Crew._begin,crew.Crew._count
def b(self,slot,now):
    ob(self,slot,now); slot._t=time.time()
def c(self,slot):
    before=dict(self._kills.counted); oc(self,slot)
    diff=[k for k in self._kills.counted if self._kills.counted[k]!=before.get(k,0)]
    n=time.monotonic()
    print(f"{time.time()-T:6.1f} {slot.role} lived {time.time()-slot._t:.1f} ready for {n-slot.ready_at if slot.ready_at else -1:.1f} {diff}",flush=True)
crew.Crew._begin=b; crew.Crew._count=c
if __name__=="__main__":
    d=Path(tempfile.mkdtemp(prefix="chaos"))
    ch=Chaos(d,int(sys.argv[1])); print("setup",time.time()-T)
    a=kills(ch,int(sys.argv[2])); print(time.time()-T, a.acknowledged, a.states, a.violations)
